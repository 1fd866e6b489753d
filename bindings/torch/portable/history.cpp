#include "portable/history.h"

#include <algorithm>
#include <limits>

#include "moba/error.h"
#include "portable/gather.h"
#include "portable/numbers.h"

namespace moba::torch_ops::portable {
namespace {

constexpr std::int64_t kMinTileRows = 512;
constexpr std::int64_t kTileStep = 128;  // rows of a thread block in the fused kernels
constexpr std::int64_t kMaxInt = std::numeric_limits<std::int32_t>::max();
// The two indices of a pair; lse and its copies while parts are merged.
constexpr std::int64_t kPairIndexBytes = 32;

// Long enough that gathering keys costs no more than gathering queries, and no longer than a block can have rows.
std::int64_t tile_rows(const HistoryProblem& p, std::int64_t key_heads, std::int64_t pairs) {
  const std::int64_t wanted = ceil_div(pairs * p.key_blocks.size, key_heads * p.total_k);
  return round_up(std::min(std::max(wanted, kMinTileRows), p.group() * p.max_q), kTileStep);
}

std::int64_t pairs_of(const HistoryProblem& p, std::int64_t key_heads, std::int64_t slots) {
  return p.total_q * p.group() * key_heads * slots;
}

// Only whole blocks are in anyone's past, so no more than key_heads * floor(Tk / B) blocks have pairs.
std::int64_t tiles_of(const HistoryProblem& p, std::int64_t key_heads, std::int64_t pairs) {
  const std::int64_t owners = std::min(key_heads * (p.total_k / p.key_blocks.size), pairs) + 1;
  return pairs / tile_rows(p, key_heads, pairs) + owners;
}

// The running maximum along the last axis, in log2(size) steps.
at::Tensor running_maximum(at::Tensor x) {
  for (std::int64_t shift = 1; shift < x.size(-1); shift *= 2) {
    const at::Tensor head = x.slice(-1, 0, shift), tail = at::maximum(x.slice(-1, shift), x.slice(-1, 0, -shift));
    x = at::cat({head, tail}, -1);
  }
  return x;
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
  const at::Tensor own = at::floor_divide(rows.position, key_blocks.size).to(at::kInt).view({-1, 1, 1});
  const at::Tensor past = list.masked_fill((list < 0).logical_or_(list >= own), -1);
  const at::Tensor highest = running_maximum(past);
  blocks = past.clone();
  blocks.slice(-1, 1).masked_fill_(past.slice(-1, 1) <= highest.slice(-1, 0, -1), -1);
}

std::vector<ChunkRange> chunks_that_fit(const HistoryProblem& problem, const ChunkCost& cost, std::int64_t bytes) {
  const std::int64_t budget = problem.blocks.size(2);
  const auto fits = [&](std::int64_t heads, std::int64_t slots) {
    const std::int64_t pairs = pairs_of(problem, heads, slots), tiles = tiles_of(problem, heads, pairs);
    return pairs <= kMaxInt && pairs * (kPairIndexBytes + cost.pair) + pairs / slots * cost.row +
                                       tiles * (problem.key_blocks.size * cost.key + cost.tile) <=
                                   bytes;
  };
  if (pairs_of(problem, 1, 1) > kMaxInt) {
    throw Error(ErrorCode::kUnsupported, "q has " + std::to_string(pairs_of(problem, 1, 1)) +
                                             " rows for a key head: the portable backend takes at most 2^31 - 1. "
                                             "Split the batch.");
  }
  std::int64_t heads = problem.kv_heads, slots = budget;
  while (heads > 1 && !fits(heads, slots)) --heads;
  while (slots > 1 && !fits(heads, slots)) --slots;
  heads = ceil_div(problem.kv_heads, ceil_div(problem.kv_heads, heads));
  slots = ceil_div(budget, ceil_div(budget, slots));
  std::vector<ChunkRange> chunks;
  for (std::int64_t head = 0; head < problem.kv_heads; head += heads) {
    for (std::int64_t slot = 0; slot < budget; slot += slots) {
      chunks.push_back({head, std::min(heads, problem.kv_heads - head), slot, std::min(slots, budget - slot)});
    }
  }
  return chunks;
}

HistoryChunk::HistoryChunk(const HistoryProblem& p, const ChunkRange& chunk)
    : head_begin(chunk.head_begin * p.group()), heads(chunk.heads * p.group()), slots(chunk.slots) {
  const std::int64_t rows = p.key_blocks.count, keys = chunk.heads * rows, block_size = p.key_blocks.size;
  const std::int64_t pair_count = p.total_q * heads * slots;
  const std::int64_t selection_heads = p.blocks.size(1);

  // The key of a pair: key head of the chunk * R + block row; `keys` for padding.
  const at::Tensor head = range(heads, p.own_row);
  at::Tensor block = p.blocks.narrow(2, chunk.slot_begin, slots);
  block = selection_heads == p.heads
              ? block.narrow(1, head_begin, heads)
              : block.index_select(1, at::floor_divide((head + head_begin) * selection_heads, p.heads));
  const at::Tensor key_head = at::floor_divide(head, p.group()).view({1, heads, 1});
  const at::Tensor first = (p.own_row + key_head * rows).to(at::kInt);
  const at::Tensor key = (block + first).masked_fill_(block < 0, keys);
  auto [sorted, order] = key.flatten().sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);

  // Both indices of a pair side by side, which spaces them.
  const at::Tensor indices = at::empty({pair_count, 2}, order.options());
  query_rows = indices.select(1, 0);
  const at::Tensor row_of_pair = at::floor_divide(order, slots);  // row * heads + head
  if (heads == p.heads) {
    query_rows.copy_(row_of_pair);
  } else {
    at::add_out(query_rows, row_of_pair, at::floor_divide(row_of_pair, heads), p.heads - heads);
    query_rows.add_(head_begin);
  }
  indices.select(1, 1).scatter_(0, order, range(pair_count, order));
  inverse = indices.view({p.total_q * heads, slots, 2}).select(2, 1);

  // Pairs of key b stand at [offset[b], offset[b + 1]), b in [0, keys]; tiles of key b at [tile[b], tile[b + 1]).
  const std::int64_t length = tile_rows(p, chunk.heads, pair_count);
  const at::Tensor offset = at::searchsorted(sorted, at::arange(keys + 2, sorted.options()));
  const at::Tensor pairs_of_key = offset.slice(0, 1) - offset.slice(0, 0, -1);
  const at::Tensor tiles_of_key = at::floor_divide(pairs_of_key + (length - 1), length);
  const at::Tensor tile = at::cat({at::zeros({1}, order.options()), tiles_of_key.cumsum(0)});
  const at::Tensor padding_tile = tile.select(0, keys);
  first_tiles = at::cat({tile.slice(0, 0, -1), padding_tile.view({1})});

  const std::int64_t tile_count = tiles_of(p, chunk.heads, pair_count);
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
  segments.every_key_has_rows = true;  // but for the keys of padding, which no one reads

  const at::Tensor key_of_tile = owner.slice(0, 0, -1).clamp_max(keys - 1);
  const at::Tensor token =
      p.key_blocks.begin.index_select(0, key_of_tile.remainder(rows)).unsqueeze(1) + range(block_size, tile);
  const at::Tensor head_of_tile = at::floor_divide(key_of_tile, rows).unsqueeze(1) + chunk.head_begin;
  key_rows = spaced((token.clamp_max(p.total_k - 1) * p.kv_heads + head_of_tile).flatten());
}

at::Tensor HistoryChunk::sum_rows(const HistoryProblem& p) const {
  const std::int64_t key_heads = heads / p.group(), rows = p.key_blocks.count, block_size = p.key_blocks.size;
  const at::Tensor token = range(p.total_k, p.own_row);
  const at::Tensor row = last_not_above(p.key_blocks.begin, token);
  const at::Tensor block_row = row.clamp_min(0);
  const at::Tensor outside = (row < 0).logical_or_(token >= p.key_blocks.end.index_select(0, block_row));
  const at::Tensor place = block_row * block_size + (token - p.key_blocks.begin.index_select(0, block_row));
  const at::Tensor first = range(key_heads, token) * (rows * block_size);
  return spaced((place.unsqueeze(1) + first)
                    .masked_fill_(outside.unsqueeze(1), key_heads * rows * block_size)  // "no tile": zeros
                    .flatten());
}

void HistoryChunk::add_key_gradient(at::Tensor gradient, const at::Tensor& gathered, const at::Tensor& rows) const {
  const std::int64_t width = gathered.size(-1), block_size = segments.max_k;
  // A sum over bags of consecutive rows; the last bag runs to the end, over the tiles of padding.
  const at::Tensor sums = std::get<0>(at::_embedding_bag_forward_only(
      gathered.reshape({tiles(), block_size * width}).to(at::kFloat), range(tiles(), first_tiles), first_tiles));
  gradient.add_(gather_rows(sums.view({-1, width}), rows).view(gradient.sizes()));
}

}  // namespace moba::torch_ops::portable
