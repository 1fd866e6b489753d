// The tables of sequences and blocks, from offsets that only the device can read.
#include "cuda/cuda_check.h"
#include "cuda/launch.h"
#include "cuda/sm90/block_scan.cuh"

namespace moba::cuda {
namespace {

constexpr int kThreads = 1024;

struct LargerOf {
  __device__ std::int64_t operator()(std::int64_t a, std::int64_t b) const { return a > b ? a : b; }
};

/// Clamping each offset to [its predecessor, total] is a running maximum, cut at the total. One block walks all
/// offsets.
__device__ void read_side(const Offsets& offsets, std::int64_t count, std::int64_t* begins, std::int64_t* lengths,
                          std::int32_t* error_word) {
  constexpr std::int64_t kWords = sizeof(SequenceSpan) / sizeof(std::int64_t);  // a span is an array of these
  std::int64_t largest = 0;                                                     // of the offsets before this round
  int errors = 0;
  for (std::int64_t first = 0; first <= count; first += kThreads) {
    const std::int64_t i = first + threadIdx.x;
    std::int64_t value = 0;
    if (i <= count) {
      value = offsets.wide ? static_cast<const std::int64_t*>(offsets.data)[i * offsets.stride]
                           : static_cast<const std::int32_t*>(offsets.data)[i * offsets.stride];
    }
    const auto scan = block_scan<kThreads>(value, std::int64_t{0}, LargerOf{});
    const std::int64_t before = min(max(largest, scan.exclusive), offsets.total);
    const std::int64_t here = min(max(max(largest, scan.exclusive), value), offsets.total);
    largest = max(largest, scan.total);
    if (i > count) continue;
    if (here != value) errors |= kCuSeqlensOutOfRange;
    if (i < count) begins[i * kWords] = here;
    if (i > 0) {
      const std::int64_t length = here - before;
      if (length > offsets.maximum) errors |= kSeqlenAboveMaximum;
      lengths[(i - 1) * kWords] = min(length, offsets.maximum);
    }
  }
  if (errors != 0 && error_word != nullptr) atomicOr(error_word, errors);
}

__device__ __forceinline__ BlockSpan block_of_row(const SequenceSpan* sequences, std::int64_t count,
                                                  std::int64_t block_size, std::int64_t row) {
  // First rows k_begin / B + s ascend strictly: ask the last sequence that begins at or before the row.
  std::int64_t low = 0, high = count;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (sequences[middle].k_begin / block_size + middle <= row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == 0) return {0, 0, -1};
  const SequenceSpan sequence = sequences[low - 1];
  const std::int64_t begin = (row - sequence.k_begin / block_size - (low - 1)) * block_size;
  if (begin >= sequence.k_length) return {0, 0, -1};
  return {sequence.k_begin + begin, static_cast<std::int32_t>(min(block_size, sequence.k_length - begin)),
          static_cast<std::int32_t>(low - 1)};
}

/// Fills the blocks too, where `blocks` is given.
__global__ void __launch_bounds__(kThreads)
    sequences_kernel(Offsets q, Offsets k, std::int64_t count, SequenceSpan* sequences, std::int32_t* error_word,
                     std::int64_t block_size, std::int64_t block_rows, BlockSpan* blocks) {
  for (std::int64_t s = threadIdx.x; s < count; s += kThreads) sequences[s] = {};
  __syncthreads();
  if (q.data != nullptr) read_side(q, count, &sequences->q_begin, &sequences->q_length, error_word);
  if (k.data != nullptr) read_side(k, count, &sequences->k_begin, &sequences->k_length, error_word);
  if (blocks == nullptr) return;
  __syncthreads();
  for (std::int64_t row = threadIdx.x; row < block_rows; row += kThreads) {
    blocks[row] = block_of_row(sequences, count, block_size, row);
  }
}

__global__ void __launch_bounds__(kThreads)
    blocks_kernel(const SequenceSpan* sequences, std::int64_t count, std::int64_t block_size, std::int64_t block_rows,
                  BlockSpan* blocks) {
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
  sequences_kernel<<<1, kThreads, 0, stream>>>(q, k, count, sequences, error_word, block_size, block_rows,
                                               few ? blocks : nullptr);
  check_cuda(cudaGetLastError(), "sequences_kernel");
  if (few) return;
  blocks_kernel<<<static_cast<unsigned>((block_rows + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      sequences, count, block_size, block_rows, blocks);
  check_cuda(cudaGetLastError(), "blocks_kernel");
}

}  // namespace moba::cuda
