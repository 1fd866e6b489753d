// pool, score and select.
#include <algorithm>
#include <utility>
#include <vector>

#include "arguments.h"
#include "portable/choice.h"
#include "portable/gather.h"
#include "portable/numbers.h"
#include "portable/portable.h"
#include "portable/segments.h"

namespace moba::torch_ops::portable {
namespace {

// Gate scores held at a time, at least: below this, launches cost more than the memory is worth.
constexpr std::int64_t kMinScoreBytes = std::int64_t{16} << 20;
constexpr std::int64_t kMinScoreRows = 32, kUsualTileRows = 128;

// Query rows cut into tiles of one sequence each, so that a tile shares its candidates.
struct RowTiles {
  at::Tensor rows;      // int64 [tiles, size]: packed rows, clamped into the tensor
  at::Tensor inside;    // bool [tiles, size]: rows that are really the tile's
  at::Tensor sequence;  // int64 [tiles]
  std::int64_t count, size;

  RowTiles(const Sequences& sequences, std::int64_t total_q, std::int64_t tile_size)
      : count(total_q / tile_size + sequences.count), size(tile_size) {
    const at::Tensor tiles = at::floor_divide(sequences.q_length + (size - 1), size);
    const at::Tensor first = tiles.cumsum(0) - tiles;
    const at::Tensor tile = range(count, first);
    sequence = last_not_above(first, tile);
    const at::Tensor offset = ((tile - first.index_select(0, sequence)) * size).unsqueeze(1) + range(size, first);
    inside = offset < sequences.q_length.index_select(0, sequence).unsqueeze(1);
    rows = (sequences.q_begin.index_select(0, sequence).unsqueeze(1) + offset).clamp_max_(total_q - 1);
  }
};

}  // namespace

at::Tensor pool(const at::Tensor& k, const SequenceBatch& batch, const AttentionOptions& options) {
  const std::int64_t block_size = options.block_size;
  const at::ScalarType dtype =
      options.representative_dtype == RepresentativeDType::kFloat32 ? at::kFloat : k.scalar_type();
  const std::int64_t total_k = k.size(0), width = k.size(1) * k.size(2);
  const Sequences sequences(batch, 0, total_k);
  const Blocks blocks(sequences, total_k, block_size);
  if (total_k == 0) return at::zeros({blocks.count, k.size(1), k.size(2)}, k.options().dtype(dtype));
  const at::Tensor lengths = blocks.end - blocks.begin;
  const at::Tensor offsets = at::cat({blocks.begin, blocks.end.slice(0, -1)});
  const at::Tensor sums = at::segment_reduce(k.reshape({total_k, width}).to(at::kFloat), "sum", {}, {}, offsets,
                                             /*axis=*/0, /*unsafe=*/true, /*initial=*/0.0);
  const at::Tensor means = sums / lengths.clamp_min(1).unsqueeze(1);
  return means.to(dtype).view({blocks.count, k.size(1), k.size(2)});
}

at::Tensor select(const at::Tensor& q, const at::Tensor& representatives, const SequenceBatch& batch,
                  const AttentionOptions& options) {
  const std::int64_t block_size = options.block_size;
  const std::int64_t total_q = q.size(0), heads = q.size(1), head_dim = q.size(2);
  const std::int64_t kv_heads = representatives.size(1), group = heads / kv_heads;
  const std::int64_t budget = options.top_k - 1, lists = lists_of(options.share, q, representatives);
  // One spare row, for rows of a tile that are not really its own.
  at::Tensor blocks = at::full({total_q + 1, lists, budget}, -1, q.options().dtype(at::kInt));
  // The last block of a sequence is nobody's past.
  const std::int64_t past = ceil_div(batch.max_seqlen_k, block_size) - 1;
  const ForcedBlocks forced(options, past);
  const std::int64_t count = std::min(forced.free_slots(budget), past);
  const std::int64_t total_k = representatives.size(0) * block_size;  // an upper bound of the keys
  if (std::min(budget, past) <= 0 || total_q == 0 || batch.cu_seqlens_k.size(0) < 2)
    return blocks.narrow(0, 0, total_q);

  const Sequences sequences(batch, total_q, total_k);
  const Rows rows(sequences, total_q);
  const at::Tensor first_row =
      at::floor_divide(sequences.k_begin, block_size) + range(sequences.count, sequences.k_begin);
  // Matrix products like round numbers; candidates that are no one's past are masked like the future.
  const std::int64_t candidate_multiple = candidate_step(past), candidates = round_up(past, candidate_multiple);
  // As many rows to a tile as candidates, so that gathering representatives costs no more than gathering queries; fewer
  // where the scores of a tile would not fit.
  const std::int64_t input_bytes = static_cast<std::int64_t>(q.nbytes() + representatives.nbytes() * block_size);
  // A narrow row is sorted whole, with three times its bytes beside it.
  const std::int64_t score_bytes = std::max(past > kSortWidth ? 2 * input_bytes : input_bytes, kMinScoreBytes);
  // Softmax holds its weights and masks beside the scores.
  const std::int64_t copies = lists < heads && options.share_score == ShareScore::kSumProb ? 3 : 1;
  const std::int64_t row_bytes = copies * heads * candidates * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t tile =
      std::min(std::clamp(score_bytes / row_bytes, kMinScoreRows, std::max(kUsualTileRows, candidates)), total_q);
  const RowTiles tiles(sequences, total_q, tile);
  const at::Tensor own_block = at::floor_divide(rows.position, block_size);  // 0 for invalid rows: nothing is past
  const at::Tensor member = range(heads, q).view({kv_heads, group, 1});
  const at::Tensor q_rows = q.reshape({total_q * heads, head_dim}).to(representatives.scalar_type());
  const at::Tensor key_head = range(kv_heads, q).view({1, kv_heads, 1});
  const at::Tensor representative_rows = representatives.reshape({-1, head_dim});
  const bool self = same_tokens(batch);
  const double scale = scale_of(options.softmax_scale, q);

  const std::int64_t step = std::max<std::int64_t>(1, score_bytes / (row_bytes * tile));
  for (std::int64_t begin = 0; begin < tiles.count; begin += step) {
    const std::int64_t n = std::min(step, tiles.count - begin);
    // Where queries and keys are the same tokens, tile t ends at the row (t + 1) * tile of its sequence, or before.
    const std::int64_t reach = self ? ceil_div((begin + n) * tile, block_size) : past;
    const std::int64_t width = std::min(candidates, round_up(std::max(reach, count), candidate_multiple));
    const at::Tensor candidate = range(width, q);
    const at::Tensor packed = tiles.rows.narrow(0, begin, n);  // [n, tile]
    // queries [n * HK, group * tile, D], representatives [n * HK, width, D]
    const at::Tensor q_index = packed.view({n, 1, 1, tile}) * heads + member;
    const at::Tensor base = first_row.index_select(0, tiles.sequence.narrow(0, begin, n)).view({n, 1, 1});
    const at::Tensor block_row = (base + candidate.view({1, 1, width})).clamp_max_(representatives.size(0) - 1);
    const at::Tensor r_index = block_row * kv_heads + key_head;
    at::Tensor scores =
        product(gather_rows(q_rows, spaced(q_index.flatten())).view({n * kv_heads, group * tile, head_dim}),
                gather_rows(representative_rows, spaced(r_index.flatten()))
                    .view({n * kv_heads, width, head_dim})
                    .transpose(1, 2))
            .view({n, heads, tile, width});
    const at::Tensor own = own_block.index_select(0, packed.flatten()).view({n, 1, tile, 1});
    if (lists < heads) scores = shared_scores(scores, candidate < own, lists, options.share_score, scale);
    forget_nan(scores);
    scores.masked_fill_(forced.is_no_candidate(candidate, own), -kInfinity);

    auto [index, chosen] = best(scores, count);
    // What is no choice goes last, as -1.
    index = forced.join(index.to(at::kInt).masked_fill_(chosen.logical_not(), width), own, width);
    index = std::get<0>(index.sort(-1));
    const std::int64_t columns = std::min(index.size(-1), budget);
    index = index.narrow(-1, 0, columns).masked_fill(index.narrow(-1, 0, columns) == width, -1);
    const at::Tensor target = at::where(tiles.inside.narrow(0, begin, n), packed, total_q).flatten();
    blocks.narrow(2, 0, columns).index_copy_(0, target, index.transpose(1, 2).reshape({n * tile, lists, columns}));
  }
  return blocks.narrow(0, 0, total_q);
}

}  // namespace moba::torch_ops::portable
