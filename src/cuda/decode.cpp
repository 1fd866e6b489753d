// A decode step over pages: the choice and attention, in one launch or two.
#include "cuda/decode.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>

#include "cuda/cuda_check.h"
#include "cuda/inverse.h"
#include "cuda/pages.h"
#include "cuda/tensor_map.h"
#include "cuda/verbs.h"
#include "moba/error.h"
#include "moba/paged_kv_cache.h"

namespace moba::cuda {
namespace {

constexpr std::int64_t kSmallestBlock = 16;
// CTAs of the choice that one multiprocessor has room for at a time.
constexpr int kResidentChoose = 2;

/// How many warps and CTAs work on a unit.
struct Shape {
  std::int32_t cluster, warps;
};

/// Few units are spread over many warps and CTAs; every further CTA of a unit makes the choice and the merge longer.
Shape shape_for(std::int64_t units, int multiprocessors) {
  const int cluster = cluster_for(units, multiprocessors, 1);
  return {cluster, units * cluster <= multiprocessors ? 8 : 4};
}

void require_native(bool holds, const std::string& what, const char* rule) {
  if (holds) return;
  throw Error(ErrorCode::kUnsupported, "decode: " + what + "; the Hopper kernels take " + rule +
                                           ". Choose such options, or keep the cache on the CPU.");
}

void check(const DecodeArgs& args) {
  const PagedKvCache& cache = *args.cache;
  const std::int64_t dim = args.q.shape[2];
  require_native(dim == cache.v.shape[2] && (dim == 64 || dim == 128),
                 "k and v have head dims " + std::to_string(dim) + " and " + std::to_string(cache.v.shape[2]),
                 "64 and 128, the same for both");
  require_native(args.selection.kind != SelectionKind::kSpan, "kind is 'window'", "'moba' and 'full'");
  require_native(cache.capacity() <= std::numeric_limits<std::int32_t>::max() - kSmallestBlock,
                 "the page tables have room for " + std::to_string(cache.capacity()) + " tokens",
                 "fewer than 2147483632");
  for (const auto& [name, tensor] : {std::pair<const char*, ConstTensorView>{"q", args.q},
                                     {"cache.k", cache.k},
                                     {"cache.v", cache.v},
                                     {"out", args.result.out}}) {
    require_native(is_aligned(tensor),
                   std::string(name) + " has an address or a stride that is no multiple of 16 bytes", "aligned rows");
  }
  if (args.selection.kind != SelectionKind::kList) return;
  require_native(cache.block_size >= kSmallestBlock, "block_size is " + std::to_string(cache.block_size),
                 "16 and more");
  require_native(args.selection.budget() <= kMaxBudget, "top_k is " + std::to_string(args.selection.budget() + 1),
                 "at most 64");
  require_native(args.rule.share_score == ShareScore::kSumLogit || args.selection.selection_heads() == args.q.shape[1],
                 std::string("share_score is '") + name_of(args.rule.share_score) + "'", "'sum_logit'");
  require_native(cache.representatives.dtype == args.q.dtype, "representatives are kept in float32",
                 "those in the dtype of the keys");
  require_native(is_aligned(cache.representatives),
                 "cache.representatives has an address or a stride that is no multiple of 16 bytes", "aligned rows");
}

DecodeProblem problem_of(const DecodeArgs& args) {
  const PagedKvCache& cache = *args.cache;
  DecodeProblem problem;
  problem.heads = static_cast<std::int32_t>(args.q.shape[1]);
  problem.kv_heads = static_cast<std::int32_t>(cache.k.shape[1]);
  problem.q = args.q.data;
  problem.q_row_stride = args.q.stride[0], problem.q_head_stride = args.q.stride[1];
  problem.k = cache.k.data;
  problem.k_row_stride = cache.k.stride[0], problem.k_head_stride = cache.k.stride[1];
  problem.v = cache.v.data;
  problem.v_row_stride = cache.v.stride[0], problem.v_head_stride = cache.v.stride[1];
  problem.out = args.result.out.data;
  problem.out_row_stride = args.result.out.stride[0], problem.out_head_stride = args.result.out.stride[1];
  problem.lse = args.result.lse.as<float>();
  problem.lse_head_stride = args.result.lse.stride[0];
  problem.softmax_scale = static_cast<float>(args.softmax_scale);
  if (args.selection.kind != SelectionKind::kList) return problem;
  const TensorView& blocks = args.selection.blocks;
  problem.block_size = static_cast<std::int32_t>(std::min<std::int64_t>(cache.block_size, 1 << 30));
  problem.representatives = cache.representatives.data;
  problem.r_row_stride = cache.representatives.stride[0], problem.r_head_stride = cache.representatives.stride[1];
  problem.blocks = blocks.as<std::int32_t>();
  problem.row_stride = blocks.stride[0], problem.list_stride = blocks.stride[1];
  problem.lists = static_cast<std::int32_t>(args.selection.selection_heads());
  problem.budget = static_cast<std::int32_t>(args.selection.budget());
  problem.sinks = static_cast<std::int32_t>(std::min<std::int64_t>(args.rule.sink_blocks, kMaxBudget));
  problem.force_previous = args.rule.force_previous;
  return problem;
}

}  // namespace

PagedSequences paged_sequences(const Context& context, const PagedKvCache& cache) {
  PagedSequences batch;
  batch.tables = cache.device_tables.as<std::int32_t>();
  batch.table_stride = cache.device_tables.stride[0];
  batch.lengths = cache.device_lengths.as<std::int64_t>();
  batch.length_stride = cache.device_lengths.stride[0];
  batch.capacity = cache.pool->pages() == 0 ? 0 : static_cast<std::int32_t>(cache.capacity());
  batch.page_size = static_cast<std::int32_t>(cache.page_size);
  const auto size = static_cast<std::uint32_t>(batch.page_size);
  batch.page_shift = std::has_single_bit(size) ? std::countr_zero(size) : -1;
  batch.pages = static_cast<std::int32_t>(cache.pool->pages());
  batch.error_word = context.error_word();
  return batch;
}

void decode(Context& context, const DecodeArgs& args) {
  check(args);
  const auto rows = static_cast<std::int64_t>(args.sequences.size());
  const std::int64_t dim = args.q.shape[2], element = size_of(args.q.dtype);
  if (rows == 0 || args.q.shape[1] == 0) return;
  const cudaStream_t stream = stream_of(context);
  const int processors = multiprocessors();
  const DecodeProblem whole = problem_of(args);
  const bool chooses = whole.budget > 0, together = chooses && chooses_by_unit(whole);
  const std::int64_t head_tiles = (whole.heads / whole.kv_heads + kHeadTile - 1) / kHeadTile;
  PagedSequences batch = paged_sequences(context, *args.cache);
  for (std::int64_t first = 0; first < rows; first += kMostSequences) {
    batch.count = static_cast<std::int32_t>(std::min(kMostSequences, rows - first));
    for (std::int32_t i = 0; i < batch.count; ++i) {
      batch.sequence[i] = static_cast<std::int32_t>(args.sequences[static_cast<std::size_t>(first + i)]);
    }
    DecodeProblem problem = whole;
    problem.batch = batch;
    problem.q = static_cast<const char*>(whole.q) + first * whole.q_row_stride * element;
    problem.out = static_cast<char*>(whole.out) + first * whole.out_row_stride * element;
    problem.lse += first;
    if (chooses) problem.blocks += first * whole.row_stride;
    if (chooses && !together) {
      problem.cluster = cluster_for(batch.count * problem.lists, processors, kResidentChoose);
      launch_decode_choose(stream, args.q.dtype, dim, problem);
    }
    const Shape shape = shape_for(batch.count * problem.kv_heads * head_tiles, processors);
    problem.cluster = shape.cluster;
    problem.warps = shape.warps;
    launch_decode_attend(stream, args.q.dtype, dim, problem, together);
  }
}

}  // namespace moba::cuda
