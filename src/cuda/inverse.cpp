// The host's side of the block map and the inverse: sizes from shapes, scratch, launches in order.
#include "cuda/inverse.h"

#include <algorithm>
#include <limits>
#include <string>

#include "cuda/batch_tables.h"
#include "cuda/launch.h"
#include "cuda/segments.h"
#include "moba/error.h"

namespace moba::cuda {
namespace {

cudaStream_t stream_of(const Context& context) {
  return static_cast<cudaStream_t>(context.stream());
}

Offsets offsets_of(const ConstTensorView& view, std::int64_t total, std::int64_t maximum) {
  if (!view.present()) return {};
  return {view.data, view.stride[0], view.dtype == DType::kInt64, total, maximum};
}

std::int64_t sequences_of(const PackedBatch& batch) {
  return (batch.cu_seqlens_k.present() ? batch.cu_seqlens_k : batch.cu_seqlens_q).shape[0] - 1;
}

/// Tokens and blocks are counted in 32 bits on the device.
std::int64_t checked_tokens(const char* argument, std::int64_t tokens) {
  if (tokens <= std::numeric_limits<std::int32_t>::max()) return tokens;
  throw Error(ErrorCode::kUnsupported, std::string(argument) + " has " + std::to_string(tokens) +
                                           " packed tokens; the Hopper kernels take at most 2147483647. Split the "
                                           "batch, or use the portable backend.");
}

void require_countable(const Slice& slice, const Selection& selection) {
  const std::int64_t budget = selection.budget(), row_stride = selection.blocks.stride[0];
  if (slice.rows <= kMaxSliceRows && budget <= kMaxBudget && row_stride >= 0 && row_stride <= kMaxListRowStride) return;
  throw Error(ErrorCode::kUnsupported, "selection has budget " + std::to_string(budget) + ", " +
                                           std::to_string(slice.rows) + " rows at a time and a row stride of " +
                                           std::to_string(row_stride) + "; the Hopper kernels take at most " +
                                           std::to_string(kMaxBudget) + ", " + std::to_string(kMaxSliceRows) + " and " +
                                           std::to_string(kMaxListRowStride) +
                                           ". Make it contiguous, or use the portable backend.");
}

InvertProblem problem_of(const Context& context, const BlockMap& map, const Selection& selection, const Slice& slice,
                         std::uint32_t* counts) {
  const TensorView& blocks = selection.blocks;
  InvertProblem problem{};
  problem.list = blocks.as<std::int32_t>() + slice.first_row * blocks.stride[0] + slice.first_list * blocks.stride[1];
  problem.row_stride = blocks.stride[0];
  problem.list_stride = blocks.stride[1];
  problem.rows = slice.rows;
  problem.lists = slice.lists;
  problem.budget = selection.budget();
  problem.first_row = slice.first_row;
  problem.sequences = map.sequences();
  problem.sequence_count = map.sequence_count();
  problem.block_size = map.block_size();
  problem.divide = Divisor(std::min<std::int64_t>(map.block_size(), std::numeric_limits<std::int32_t>::max()));
  problem.block_rows = map.block_rows();
  problem.segment_rows = segment_rows_for(slice, selection.budget(), map.block_rows());
  problem.segments = (slice.rows + problem.segment_rows - 1) / problem.segment_rows;
  problem.counts = counts;
  problem.totals = counts + slice.lists * problem.segments * map.block_rows();
  problem.error_word = context.error_word();
  return problem;
}

}  // namespace

BlockMap::BlockMap(Context& context, const PackedBatch& batch, std::int64_t total_q, std::int64_t total_k,
                   std::int64_t block_size)
    : block_size_(block_size),
      sequences_(context, sequences_of(batch), "the sequences of a batch"),
      blocks_(context, moba::block_rows(checked_tokens("k", total_k), sequences_of(batch), block_size),
              "the blocks of a batch") {
  checked_tokens("q", total_q);
  launch_block_map(stream_of(context), offsets_of(batch.cu_seqlens_q, total_q, batch.max_seqlen_q),
                   offsets_of(batch.cu_seqlens_k, total_k, batch.max_seqlen_k), sequences_.size(), sequences_.data(),
                   context.error_word(), block_size, blocks_.size(), blocks_.data());
}

BatchTables::BatchTables(Context& context, const PackedBatch& batch, std::int64_t total_q, std::int64_t total_k,
                         std::int64_t block_size)
    : sequences_{offsets_of(batch.cu_seqlens_q, checked_tokens("q", total_q), batch.max_seqlen_q),
                 offsets_of(batch.cu_seqlens_k, checked_tokens("k", total_k), batch.max_seqlen_k),
                 sequences_of(batch),
                 block_size,
                 context.error_word(),
                 nullptr,
                 nullptr} {
  if (sequences_.count <= kFewSequences) return;
  map_.emplace(context, batch, total_q, total_k, block_size);
  sequences_.table = map_->sequences();
  sequences_.block_table = map_->blocks();
}

std::int64_t BlockInverse::bytes(const Slice& slice, std::int64_t budget, std::int64_t block_rows,
                                 std::int64_t item_rows) {
  const std::int64_t bins = slice.lists * block_rows;
  return (bins + 1) * static_cast<std::int64_t>(sizeof(std::int64_t) + sizeof(std::int32_t)) +
         slice.rows * slice.lists * budget * static_cast<std::int64_t>(sizeof(std::uint32_t)) +
         items_for(slice, budget, block_rows, item_rows) * static_cast<std::int64_t>(sizeof(WorkItem)) +
         count_words(slice, budget, block_rows) * static_cast<std::int64_t>(sizeof(std::uint32_t));
}

BlockInverse::BlockInverse(Context& context, const BlockMap& map, const Selection& selection, const Slice& largest,
                           std::int64_t item_rows)
    : context_(context),
      map_(map),
      selection_(selection),
      item_rows_(item_rows),
      offsets_(context, largest.lists * map.block_rows() + 1, "offsets of the inverse"),
      entries_(context, largest.rows * largest.lists * selection.budget(), "entries of the inverse"),
      first_item_(context, largest.lists * map.block_rows() + 1, "first work items of blocks"),
      items_(context, items_for(largest, selection.budget(), map.block_rows(), item_rows), "work items"),
      counts_(context, count_words(largest, selection.budget(), map.block_rows()), "histograms of the inverse") {
  require_countable(largest, selection);
}

void BlockInverse::build(const Slice& slice) {
  bins_ = slice.lists * map_.block_rows();
  max_items_ = items_for(slice, selection_.budget(), map_.block_rows(), item_rows_);
  const cudaStream_t stream = stream_of(context_);
  const InvertProblem problem = problem_of(context_, map_, selection_, slice, counts_.data());
  launch_invert_count(stream, problem);
  launch_invert_scan(stream, problem, item_rows_, offsets_.data(), first_item_.data());
  const ItemsProblem items{item_rows_, first_item_.data(), map_.blocks(), items_.data()};
  launch_invert_scatter(stream, problem, offsets_.data(), entries_.data(), nullptr, 0, &items);
}

void BlockInverse::build_pairs(Context& context, const BlockMap& map, const Selection& selection, const Slice& slice,
                               const Inverse& inverse) {
  require_countable(slice, selection);
  const Scratch<std::uint32_t> counts(context, count_words(slice, selection.budget(), map.block_rows()),
                                      "histograms of the inverse");
  const cudaStream_t stream = stream_of(context);
  const InvertProblem problem = problem_of(context, map, selection, slice, counts.data());
  std::int64_t* offsets = inverse.offsets.as<std::int64_t>();
  launch_invert_count(stream, problem);
  launch_invert_scan(stream, problem, 1, offsets, nullptr);
  launch_invert_scatter(stream, problem, offsets, nullptr, inverse.entries.as<std::int32_t>(),
                        inverse.entries.stride[0], nullptr);
}

}  // namespace moba::cuda
