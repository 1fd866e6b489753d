// The sequences of a batch that has few of them, straight from the offsets: one a lane, in each block of threads that
// asks. A table of them would cost a launch.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace moba::cuda {

/// Tokens [begin, begin + length) of one sequence, of one side.
struct TokenSpan {
  std::int32_t begin, length;
};

/// By whole warps: those of the sequence of the lane's number, by the rule of src/sequences.h; empty where there is
/// none. `errors` takes bits of the error word. count <= kFewSequences.
__device__ __forceinline__ TokenSpan tokens_of_lane(const Offsets& offsets, int count, int& errors) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  if (offsets.data == nullptr) return {0, 0};
  std::int64_t value = 0;
  if (lane <= count) {
    value = offsets.wide ? static_cast<const std::int64_t*>(offsets.data)[lane * offsets.stride]
                         : static_cast<const std::int32_t*>(offsets.data)[lane * offsets.stride];
  }
  // Clamping to [the offset before, total] is a running maximum of offsets that are cut to [0, total].
  std::int32_t here = static_cast<std::int32_t>(min(max(value, std::int64_t{0}), offsets.total));
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const std::int32_t other = __shfl_up_sync(kAll, here, step);
    if (lane >= step) here = max(here, other);
  }
  if (lane <= count && here != value) errors |= kCuSeqlensOutOfRange;
  const std::int32_t next = __shfl_down_sync(kAll, here, 1);
  if (lane >= count) return {0, 0};
  if (next - here > offsets.maximum) errors |= kSeqlenAboveMaximum;
  return {here, static_cast<std::int32_t>(min(std::int64_t{next - here}, offsets.maximum))};
}

__device__ __forceinline__ void report_errors(const BatchSequences& batch, int errors) {
  if (errors != 0 && batch.error_word != nullptr) atomicOr(batch.error_word, errors);
}

/// By a whole warp; reports what is wrong where `reports`.
__device__ __forceinline__ SequenceSpan span_of_lane(const BatchSequences& batch, bool reports) {
  int errors = 0;
  const int count = static_cast<int>(batch.count);
  const TokenSpan q = tokens_of_lane(batch.q, count, errors), k = tokens_of_lane(batch.k, count, errors);
  if (reports) report_errors(batch, errors);
  return {q.begin, q.length, k.begin, k.length};
}

/// By whole warps: the keys of a block row.
__device__ __forceinline__ BlockSpan block_of_few(const BatchSequences& batch, std::int64_t row, bool reports) {
  constexpr unsigned kAll = 0xffffffffu;
  int errors = 0;
  const int count = static_cast<int>(batch.count), lane = threadIdx.x % 32;
  const TokenSpan k = tokens_of_lane(batch.k, count, errors);
  if (reports) report_errors(batch, errors);
  const std::int64_t first_row = k.begin / batch.block_size + lane;
  // First rows ascend: the last sequence that begins at or before the row.
  const unsigned before = __ballot_sync(kAll, lane < count && first_row <= row);
  if (before == 0) return {0, 0, -1};
  const int s = 31 - __clz(static_cast<int>(before));
  const std::int64_t key = (row - __shfl_sync(kAll, first_row, s)) * batch.block_size;
  const std::int32_t begin = __shfl_sync(kAll, k.begin, s), length = __shfl_sync(kAll, k.length, s);
  if (key >= length) return {0, 0, -1};
  return {begin + key, static_cast<std::int32_t>(min(batch.block_size, length - key)), s};
}

}  // namespace moba::cuda
