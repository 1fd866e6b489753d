#include "cuda/gate.h"

#include <algorithm>
#include <limits>
#include <string>

#include "cuda/batch_tables.h"
#include "cuda/inverse.h"
#include "cuda/launch.h"
#include "cuda/tensor_map.h"
#include "moba/error.h"
#include "sequences.h"

namespace moba::cuda {
namespace {

void require_aligned(const char* argument, const ConstTensorView& tensor) {
  if (is_aligned(tensor)) return;
  throw Error(ErrorCode::kUnsupported, std::string(argument) +
                                           " has an address or a stride that is not a multiple of 16 bytes; the Hopper "
                                           "kernels read it in 16-byte pieces. Make it contiguous first.");
}

void require_narrow(const ConstTensorView& representatives, DType dtype) {
  if (representatives.dtype == dtype) return;
  throw Error(ErrorCode::kUnsupported, std::string("representatives are ") + name_of(representatives.dtype) +
                                           "; the Hopper kernels take them in the dtype of the keys. Use "
                                           "representative_dtype 'input', or the portable backend.");
}

}  // namespace

void pool(Context& context, const PoolArgs& args) {
  require_narrow(args.representatives, args.k.dtype);
  require_aligned("k", args.k);
  PackedBatch batch = args.batch;
  batch.cu_seqlens_q = {};
  const BatchTables tables(context, batch, 0, args.k.shape[0], args.block_size);
  PoolProblem problem{};
  problem.k = args.k.data;
  problem.k_row_stride = args.k.stride[0];
  problem.k_head_stride = args.k.stride[1];
  problem.representatives = args.representatives.data;
  problem.row_stride = args.representatives.stride[0];
  problem.head_stride = args.representatives.stride[1];
  problem.block_rows = args.representatives.shape[0];
  problem.kv_heads = args.k.shape[1];
  problem.head_dim = args.k.shape[2];
  problem.batch = tables.sequences();
  launch_pool(static_cast<cudaStream_t>(context.stream()), args.k.dtype, problem);
}

void select(Context& context, const SelectArgs& args, const ForcedBlocks& forced) {
  const Selection& selection = args.selection;
  if (selection.budget() > kMaxBudget) {
    throw Error(ErrorCode::kUnsupported, "the budget of the selection is " + std::to_string(selection.budget()) +
                                             "; the Hopper kernels take at most " + std::to_string(kMaxBudget) +
                                             ". Choose fewer blocks, or use the portable backend.");
  }
  if (args.rule.share_score != ShareScore::kSumLogit && selection.selection_heads() != args.q.shape[1]) {
    throw Error(ErrorCode::kUnsupported, std::string("share_score is '") + name_of(args.rule.share_score) +
                                             "'; the Hopper kernels score a shared choice by 'sum_logit'. Use that, or "
                                             "the portable backend.");
  }
  require_narrow(args.representatives, args.q.dtype);
  if (args.q.shape[0] == 0 || args.representatives.shape[0] == 0) return;
  require_aligned("q", args.q);
  const std::int64_t most = most_keys(args.representatives.shape[0], args.batch.sequences(), selection.block_size);
  const BatchTables tables(context, args.batch, args.q.shape[0],
                           std::min<std::int64_t>(most, std::numeric_limits<std::int32_t>::max()),
                           selection.block_size);
  SelectProblem problem{};
  problem.representatives = tensor_map("representatives", args.representatives, kSelectBoxRows);
  problem.q = args.q.data;
  problem.q_row_stride = args.q.stride[0];
  problem.q_head_stride = args.q.stride[1];
  problem.rows = args.q.shape[0];
  problem.heads = args.q.shape[1];
  problem.kv_heads = args.representatives.shape[1];
  problem.head_dim = args.q.shape[2];
  problem.blocks = selection.blocks.as<std::int32_t>();
  problem.row_stride = selection.blocks.stride[0];
  problem.list_stride = selection.blocks.stride[1];
  problem.lists = selection.selection_heads();
  problem.budget = static_cast<std::int32_t>(selection.budget());
  problem.sinks =
      static_cast<std::int32_t>(std::min<std::int64_t>(forced.sink_blocks, std::numeric_limits<std::int32_t>::max()));
  problem.force_previous = forced.force_previous ? 1 : 0;
  problem.block_size = Divisor(std::min<std::int64_t>(selection.block_size, std::numeric_limits<std::int32_t>::max()));
  problem.batch = tables.sequences();
  launch_select(static_cast<cudaStream_t>(context.stream()), args.q.dtype, problem);
}

void invert(Context& context, const InvertArgs& args) {
  const Selection& selection = args.selection;
  const BlockMap map(context, args.batch, args.rows, args.total_keys, selection.block_size);
  // The public form has (row, slot) pairs and no work items; one slice of all rows fills it.
  const Slice all{0, args.rows, 0, selection.selection_heads()};
  BlockInverse::build_pairs(context, map, selection, all, args.inverse);
}

void score(Context& context, const ScoreArgs& args) {
  require_narrow(args.representatives, args.q.dtype);
  const std::int64_t most = most_keys(args.representatives.shape[0], args.batch.sequences(), args.block_size);
  const BlockMap map(context, args.batch, args.q.shape[0],
                     std::min<std::int64_t>(most, std::numeric_limits<std::int32_t>::max()), args.block_size);
  ScoreProblem problem{};
  problem.q = args.q.data;
  problem.q_row_stride = args.q.stride[0];
  problem.q_head_stride = args.q.stride[1];
  problem.representatives = args.representatives.data;
  problem.r_row_stride = args.representatives.stride[0];
  problem.r_head_stride = args.representatives.stride[1];
  problem.scores = args.scores.as<float>();
  problem.row_stride = args.scores.stride[0];
  problem.head_stride = args.scores.stride[1];
  problem.rows = args.q.shape[0];
  problem.heads = args.q.shape[1];
  problem.kv_heads = args.representatives.shape[1];
  problem.head_dim = args.q.shape[2];
  problem.columns = args.scores.shape[2];
  problem.block_size = args.block_size;
  problem.sequences = map.sequences();
  problem.sequence_count = map.sequence_count();
  launch_score(static_cast<cudaStream_t>(context.stream()), args.q.dtype, problem);
}

void merge(Context& context, const MergeArgs& args) {
  const auto view_of = [](const Partial& part) {
    return PartView{part.out.data,      part.lse.as<float>(), part.out.stride[0], part.out.stride[1],
                    part.lse.stride[0], part.lse.stride[1],   part.out.dtype};
  };
  if (args.parts.size() > kMostParts) {
    throw Error(ErrorCode::kUnsupported, "parts has " + std::to_string(args.parts.size()) +
                                             " elements; merge on CUDA takes at most " + std::to_string(kMostParts) +
                                             ". Merge them in groups.");
  }
  MergeProblem problem{};
  problem.rows = args.result.out.shape[0];
  problem.heads = args.result.out.shape[1];
  problem.value_dim = args.result.out.shape[2];
  problem.result = view_of(args.result);
  for (const Partial& part : args.parts) problem.parts[problem.count++] = view_of(part);
  launch_merge(static_cast<cudaStream_t>(context.stream()), problem);
}

}  // namespace moba::cuda
