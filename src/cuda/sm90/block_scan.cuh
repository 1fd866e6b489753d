// A scan over the threads of a block, in thread order.
#pragma once

#include <cstdint>
#include <cstring>

namespace moba::cuda {

template <class T>
struct Scanned {
  T exclusive;  // of the threads before this one
  T total;      // of all threads
};

/// __shfl_up_sync for any type without pointers of its own, word by word.
template <class T>
__device__ __forceinline__ T shuffle_up(const T& value, unsigned step) {
  static_assert(sizeof(T) % sizeof(std::uint32_t) == 0);
  constexpr int kWords = sizeof(T) / sizeof(std::uint32_t);
  std::uint32_t words[kWords];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (std::uint32_t& word : words) word = __shfl_up_sync(0xffffffffu, word, step);
  T result;
  memcpy(&result, words, sizeof(T));
  return result;
}

/// Every thread of the block calls it; `neutral` is the neutral element of the associative `combine`.
template <int kThreads, class T, class Combine>
__device__ Scanned<T> block_scan(T value, T neutral, Combine combine) {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024);
  __shared__ T warp_totals[32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T inclusive = value;
#pragma unroll
  for (unsigned step = 1; step < 32; step *= 2) {
    const T other = shuffle_up(inclusive, step);
    if (lane >= step) inclusive = combine(other, inclusive);
  }
  T exclusive = shuffle_up(inclusive, 1);
  if (lane == 0) exclusive = neutral;
  __syncthreads();  // the totals of a call before this one have been read
  if (lane == 31) warp_totals[warp] = inclusive;
  __syncthreads();
  T before = neutral, total = neutral;
#pragma unroll
  for (unsigned w = 0; w < kThreads / 32; ++w) {
    if (w == warp) before = total;
    total = combine(total, warp_totals[w]);
  }
  return {combine(before, exclusive), total};
}

}  // namespace moba::cuda
