// The tables of sequences and blocks, from offsets that only the device can read.
#include "cuda/dependent_launch.h"
#include "cuda/launch.h"
#include "cuda/sm90/block_scan.cuh"
#include "cuda/sm90/sequence_lookup.cuh"

namespace moba::cuda {
namespace {

constexpr int kThreads = 1024;

constexpr int kSides = 2;  // queries and keys

struct Sides {
  std::int64_t at[kSides];
};

struct LargerOf {
  __device__ Sides operator()(const Sides& a, const Sides& b) const {
    return {max(a.at[0], b.at[0]), max(a.at[1], b.at[1])};
  }
};

/// Clamping each offset to [its predecessor, total] is a running maximum, cut at the total. One block walks all
/// offsets of both sides together; a side without data is left empty.
__device__ void read_sequences(const Offsets (&sides)[kSides], std::int64_t count, SequenceSpan* sequences,
                               std::int32_t* error_word) {
  Sides largest{};  // of the offsets before this round
  int errors = 0;
  for (std::int64_t first = 0; first <= count; first += kThreads) {
    const std::int64_t i = first + threadIdx.x;
    Sides value{};
#pragma unroll
    for (int side = 0; side < kSides; ++side) {
      const Offsets& offsets = sides[side];
      if (i > count || offsets.data == nullptr) continue;
      value.at[side] = offsets.wide ? static_cast<const std::int64_t*>(offsets.data)[i * offsets.stride]
                                    : static_cast<const std::int32_t*>(offsets.data)[i * offsets.stride];
    }
    const auto scan = block_scan<kThreads>(value, Sides{}, LargerOf{});
    const Sides earlier = LargerOf{}(largest, scan.exclusive);
    largest = LargerOf{}(largest, scan.total);
    if (i > count) continue;
#pragma unroll
    for (int side = 0; side < kSides; ++side) {
      const Offsets& offsets = sides[side];
      const std::int64_t before = min(earlier.at[side], offsets.total);
      const std::int64_t here = min(max(earlier.at[side], value.at[side]), offsets.total);
      if (here != value.at[side]) errors |= kCuSeqlensOutOfRange;
      if (i < count) (side == 0 ? sequences[i].q_begin : sequences[i].k_begin) = here;
      if (i == 0) continue;
      const std::int64_t length = here - before;
      if (length > offsets.maximum) errors |= kSeqlenAboveMaximum;
      SequenceSpan& sequence = sequences[i - 1];
      (side == 0 ? sequence.q_length : sequence.k_length) = min(length, offsets.maximum);
    }
  }
  if (errors != 0 && error_word != nullptr) atomicOr(error_word, errors);
}

__device__ __forceinline__ BlockSpan block_of_row(const SequenceSpan* sequences, std::int64_t count,
                                                  std::int64_t block_size, std::int64_t row) {
  // First rows k_begin / B + s ascend strictly: ask the last sequence that begins at or before the row.
  const auto first_row = [&](std::int64_t s) { return sequences[s].k_begin / block_size + s; };
  const std::int64_t s = last_at_or_before(count, row, first_row);
  if (s < 0) return {0, 0, -1};
  const SequenceSpan sequence = sequences[s];
  const std::int64_t begin = (row - first_row(s)) * block_size;
  if (begin >= sequence.k_length) return {0, 0, -1};
  return {sequence.k_begin + begin, static_cast<std::int32_t>(min(block_size, sequence.k_length - begin)),
          static_cast<std::int32_t>(s)};
}

/// Fills the blocks too, where `blocks` is given.
__global__ void __launch_bounds__(kThreads)
    sequences_kernel(Offsets q, Offsets k, std::int64_t count, SequenceSpan* sequences, std::int32_t* error_word,
                     std::int64_t block_size, std::int64_t block_rows, BlockSpan* blocks) {
  wait_for_launches_before();
  const Offsets sides[kSides] = {q, k};
  read_sequences(sides, count, sequences, error_word);
  if (blocks == nullptr) return;
  __syncthreads();
  for (std::int64_t row = threadIdx.x; row < block_rows; row += kThreads) {
    blocks[row] = block_of_row(sequences, count, block_size, row);
  }
}

__global__ void __launch_bounds__(kThreads)
    blocks_kernel(const SequenceSpan* sequences, std::int64_t count, std::int64_t block_size, std::int64_t block_rows,
                  BlockSpan* blocks) {
  wait_for_launches_before();
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row < block_rows) blocks[row] = block_of_row(sequences, count, block_size, row);
}

}  // namespace

void launch_block_map(cudaStream_t stream, const Offsets& q, const Offsets& k, std::int64_t count,
                      SequenceSpan* sequences, std::int32_t* error_word, std::int64_t block_size,
                      std::int64_t block_rows, BlockSpan* blocks) {
  if (count == 0) return;
  // Up to so many rows one block of threads fills the table in the time of a second launch.
  constexpr std::int64_t kFewRows = 4 * kThreads;
  const bool few = block_rows <= kFewRows;
  launch_dependent(sequences_kernel, "sequences_kernel", 1, kThreads, 0, stream, q, k, count, sequences, error_word,
                   block_size, block_rows, few ? blocks : nullptr);
  if (few) return;
  launch_dependent(blocks_kernel, "blocks_kernel", static_cast<unsigned>((block_rows + kThreads - 1) / kThreads),
                   kThreads, 0, stream, sequences, count, block_size, block_rows, blocks);
}

}  // namespace moba::cuda
