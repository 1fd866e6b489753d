#include "portable/history.h"

#include <algorithm>
#include <limits>

#include "moba/error.h"

namespace moba::torch_ops::portable {
namespace {

constexpr std::int64_t kMinTileRows = 512;
constexpr std::int64_t kTileStep = 128;  // rows of a thread block in the fused kernels
constexpr std::int64_t kMaxInt = std::numeric_limits<std::int32_t>::max();

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Long enough that gathering keys costs no more than gathering queries, and no longer than a block can have rows.
std::int64_t tile_rows(const HistoryProblem& p, std::int64_t pairs) {
  const std::int64_t wanted = ceil_div(pairs * p.key_blocks.size, p.kv_heads * p.total_k);
  const std::int64_t most = p.heads / p.kv_heads * p.max_q;
  return ceil_div(std::min(std::max(wanted, kMinTileRows), most), kTileStep) * kTileStep;
}

}  // namespace

HistoryProblem::HistoryProblem(const at::Tensor& q, const at::Tensor& k, const SequenceBatch& batch,
                               const at::Tensor& list, const Rows& rows, const Blocks& key_blocks_in)
    : total_q(q.size(0)),
      heads(q.size(1)),
      total_k(k.size(0)),
      kv_heads(k.size(1)),
      max_q(batch.max_seqlen_q),
      own_row(key_blocks_in.first_row.index_select(0, rows.sequence).view({-1, 1, 1})),
      key_blocks(key_blocks_in) {
  // A block must be in the row's past and above the one listed before it; anything else is passed over.
  const at::Tensor own = at::floor_divide(rows.position, key_blocks.size).view({-1, 1, 1});
  const at::Tensor past = list.masked_fill((list < 0).logical_or_(list >= own), -1);
  const at::Tensor highest = std::get<0>(at::cummax(past, -1));
  blocks = past.clone();
  blocks.slice(-1, 1).masked_fill_(past.slice(-1, 1) <= highest.slice(-1, 0, -1), -1);
}

std::int64_t slots_that_fit(const HistoryProblem& problem, std::int64_t pair_bytes, std::int64_t bytes) {
  const std::int64_t slot_pairs = problem.total_q * problem.heads;
  if (slot_pairs > kMaxInt) {
    throw Error(ErrorCode::kUnsupported, "q has " + std::to_string(slot_pairs) +
                                             " rows x heads: the portable backend takes at most 2^31 - 1. Split the "
                                             "batch.");
  }
  const std::int64_t fit = std::min(bytes / std::max<std::int64_t>(1, slot_pairs * pair_bytes), kMaxInt / slot_pairs);
  return std::max<std::int64_t>(1, fit);
}

HistoryChunk::HistoryChunk(const HistoryProblem& p, std::int64_t begin, std::int64_t slots_in) : slots(slots_in) {
  const std::int64_t rows = p.key_blocks.count, keys = p.kv_heads * rows, block_size = p.key_blocks.size;
  const std::int64_t pair_count = p.total_q * p.heads * slots;
  const std::int64_t selection_heads = p.blocks.size(1);
  const auto options = p.own_row.options();

  // The key of a pair: key head * R + block row; `keys` for padding.
  const at::Tensor head = range(p.heads, p.own_row);
  at::Tensor block = p.blocks.narrow(2, begin, slots);
  if (selection_heads != p.heads) {
    block = block.index_select(1, at::floor_divide(head * selection_heads, p.heads));
  }
  const at::Tensor key_head = at::floor_divide(head, p.heads / p.kv_heads).view({1, p.heads, 1});
  const at::Tensor key = (block + (p.own_row + key_head * rows)).masked_fill_(block < 0, keys).to(at::kInt);
  auto [sorted, order] = key.flatten().sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);

  query_rows = at::floor_divide(order, slots);
  inverse = at::empty_like(order).scatter_(0, order, range(pair_count, order)).view({p.total_q * p.heads, slots});

  // Pairs of key b stand at [offset[b], offset[b + 1]), b in [0, keys]; tiles of key b at [tile[b], tile[b + 1]).
  const std::int64_t length = tile_rows(p, pair_count);
  const at::Tensor offset = at::searchsorted(sorted, at::arange(keys + 2, sorted.options()));
  const at::Tensor pairs_of_key = offset.slice(0, 1) - offset.slice(0, 0, -1);
  const at::Tensor tiles_of_key = at::floor_divide(pairs_of_key + (length - 1), length);
  const at::Tensor tile = at::cat({at::zeros({1}, options), tiles_of_key.cumsum(0)});
  const at::Tensor padding_tile = tile.select(0, keys);

  // Only whole blocks are in anyone's past, so no more than HK * floor(Tk / B) keys have pairs.
  const std::int64_t owners = std::min(p.kv_heads * (p.total_k / block_size), pair_count) + 1;
  const std::int64_t tile_count = pair_count / length + owners;
  if (tile_count * block_size > kMaxInt) {
    throw Error(ErrorCode::kUnsupported,
                "block_size " + std::to_string(block_size) + " over " + std::to_string(p.total_k) +
                    " keys is beyond the 32-bit offsets of the fused kernels. Split the batch.");
  }
  const at::Tensor number = range(tile_count + 1, tile);
  const at::Tensor owner = last_not_above(tile.slice(0, 0, -1), number).clamp_(0, keys);
  const at::Tensor in_owner = number - tile.index_select(0, owner);
  segments.cu_q =
      at::minimum(offset.index_select(0, owner) + in_owner * length, offset.index_select(0, owner + 1)).to(at::kInt);
  segments.cu_k = (at::minimum(number, padding_tile) * block_size).to(at::kInt);
  segments.max_q = length;
  segments.max_k = block_size;

  const at::Tensor key_of_tile = owner.slice(0, 0, -1).clamp_max(keys - 1);
  const at::Tensor token =
      p.key_blocks.begin.index_select(0, key_of_tile.remainder(rows)).unsqueeze(1) + range(block_size, tile);
  key_rows = (token.clamp_max(p.total_k - 1) * p.kv_heads + at::floor_divide(key_of_tile, rows).unsqueeze(1)).flatten();

  // Tile numbers where a new block begins, in order: block n of those that have tiles.
  const at::Tensor first = (in_owner == 0).logical_and_(number < padding_tile).slice(0, 0, -1).cumsum(0);
  block_tiles = at::minimum(at::searchsorted(first, range(owners, tile) + 1), padding_tile);
}

void HistoryChunk::add_key_gradient(at::Tensor& gradient, const at::Tensor& gathered) const {
  const std::int64_t width = gathered.size(-1), block_size = segments.max_k;
  const at::Tensor sums =
      at::segment_reduce(gathered.reshape({tiles(), block_size * width}).to(at::kFloat), "sum", {}, {}, block_tiles,
                         /*axis=*/0, /*unsafe=*/true, /*initial=*/0.0);
  // Each block that has tiles once; the empty ranges behind them add zeros to some block.
  const at::Tensor first_tile = block_tiles.slice(0, 0, -1).clamp_max(tiles() - 1);
  const at::Tensor rows = key_rows.view({tiles(), block_size}).index_select(0, first_tile).flatten();
  gradient.index_add_(0, rows, sums.view({-1, width}));
}

}  // namespace moba::torch_ops::portable
