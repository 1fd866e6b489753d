// Launchers of the gate's kernels: raw pointers, strides in elements, everything on one stream.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/divisor.h"
#include "cuda/inverse.h"

namespace moba::cuda {

/// Offsets of one side of a packed batch, in device memory; `data` may be null where the side is not needed.
struct Offsets {
  const void* data = nullptr;
  std::int64_t stride = 1;
  bool wide = false;         // int64 instead of int32
  std::int64_t total = 0;    // tokens in the tensor
  std::int64_t maximum = 0;  // the longest sequence that the caller promises
};

/// The sequences of a packed batch. Up to kFewSequences a kernel takes from the offsets, see few_sequences.cuh; where
/// there are more, the tables are set.
struct BatchSequences {
  Offsets q, k;
  std::int64_t count;
  std::int64_t block_size;
  std::int32_t* error_word;      // or null
  const SequenceSpan* table;     // [count], or null
  const BlockSpan* block_table;  // [block rows], or null
};

/// One a lane, and the end of the last.
inline constexpr std::int64_t kFewSequences = 31;

void launch_block_map(cudaStream_t stream, const Offsets& q, const Offsets& k, std::int64_t count,
                      SequenceSpan* sequences, std::int32_t* error_word, std::int64_t block_size,
                      std::int64_t block_rows, BlockSpan* blocks);

/// What the passes of `invert` share.
struct InvertProblem {
  const std::int32_t* list;  // the selection, at [first row, first list]
  std::int64_t row_stride, list_stride;
  std::int64_t rows, lists, budget;
  std::int64_t first_row;  // packed row of list row 0
  const SequenceSpan* sequences;
  std::int64_t sequence_count;
  std::int64_t block_size, block_rows;
  Divisor divide;                       // by the block size, or by 2^31 - 1 where that is larger: tokens are below it
  std::int64_t segments, segment_rows;  // runs of rows that are counted and written together; see segments.h
  std::uint32_t* counts;                // [lists, segments, block_rows]
  std::uint32_t* totals;                // [lists, block_rows]
  std::int32_t* error_word;             // or null
};

/// counts = how often each segment lists each block.
void launch_invert_count(cudaStream_t stream, const InvertProblem& problem);
/// counts = its exclusive sum over the segments; offsets[b + 1] and first_item[b + 1] (which may be null) = where bin b
/// ends, and offsets[0] = first_item[0] = 0.
void launch_invert_scan(cudaStream_t stream, const InvertProblem& problem, std::int64_t item_rows,
                        std::int64_t* offsets, std::int32_t* first_item);
/// Where the work items of an inverse go.
struct ItemsProblem {
  std::int64_t item_rows;
  const std::int32_t* first_item;
  const BlockSpan* blocks;
  WorkItem* items;
};

/// Exactly one of `entries` (packed) and `pairs` ((packed row, slot) as of moba::Inverse, `pair_stride` apart) is set.
/// `items` may be null.
void launch_invert_scatter(cudaStream_t stream, const InvertProblem& problem, const std::int64_t* offsets,
                           std::uint32_t* entries, std::int32_t* pairs, std::int64_t pair_stride,
                           const ItemsProblem* items);

struct PoolProblem {
  const void* k;  // [Tk, HK, D]
  std::int64_t k_row_stride, k_head_stride;
  void* representatives;  // [block_rows, HK, D]
  std::int64_t row_stride, head_stride;
  std::int64_t block_rows, kv_heads, head_dim;
  BatchSequences batch;
};

void launch_pool(cudaStream_t stream, DType dtype, const PoolProblem& problem);

struct SelectProblem {
  CUtensorMap representatives;  // [R, HK, D], boxes of kSelectBoxRows rows
  const void* q;                // [Tq, H, D]
  std::int64_t q_row_stride, q_head_stride;
  std::int64_t rows, heads, kv_heads, head_dim;
  std::int32_t* blocks;  // [Tq, lists, budget]
  std::int64_t row_stride, list_stride;
  std::int64_t lists;
  std::int32_t budget;
  std::int32_t sinks;           // the first blocks of the sequence that take slots, where past
  std::int32_t force_previous;  // 1: the block before the own one takes a slot
  Divisor block_size;           // 2^31 - 1 stands for any that is larger: tokens are below it
  BatchSequences batch;

  /// The block of a position, 0 or above.
  MOBA_HOST_DEVICE std::int32_t block_of(std::int32_t position) const { return block_size.quotient(position); }
};

/// Representatives that are copied at a time; tiles have one or two times as many.
inline constexpr int kSelectBoxRows = 64;

void launch_select(cudaStream_t stream, DType dtype, const SelectProblem& problem);

struct ScoreProblem {
  const void* q;  // [Tq, H, D]
  std::int64_t q_row_stride, q_head_stride;
  const void* representatives;  // [R, HK, D]
  std::int64_t r_row_stride, r_head_stride;
  float* scores;  // [Tq, H, columns]
  std::int64_t row_stride, head_stride;
  std::int64_t rows, heads, kv_heads, head_dim, columns;
  std::int64_t block_size;
  const SequenceSpan* sequences;
  std::int64_t sequence_count;
};

void launch_score(cudaStream_t stream, DType dtype, const ScoreProblem& problem);

/// One part, or the result: out [rows, heads, Dv] of float32, bfloat16 or float16, lse float32 [heads, rows].
struct PartView {
  void* out;
  float* lse;
  std::int64_t row_stride, head_stride;
  std::int64_t lse_head_stride, lse_row_stride;
  DType dtype;
};

/// As many parts as the 4 KB of a kernel's parameters hold.
inline constexpr int kMostParts = 64;

struct MergeProblem {
  std::int64_t rows, heads, value_dim;
  PartView result;
  int count;
  PartView parts[kMostParts];
};

void launch_merge(cudaStream_t stream, const MergeProblem& problem);

}  // namespace moba::cuda
