// Short sorted runs of scores in registers, and the k-th largest of the runs of a quad.
#pragma once

#include <cstdint>

#include "cuda/device/softmax.cuh"

namespace moba::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;
/// Sorted scores of a lane. Whatever lane holds them, the best k <= kSorted of a row are among its quad's.
inline constexpr int kSorted = 8;
/// The largest k that a bound is made for; above kSorted it is a lower bound of the k-th best score.
inline constexpr int kMostBounded = 2 * kSorted;

/// The same for k up to 2, at a fraction of the work.
inline constexpr int kFew = 2;

/// sorted (descending) takes in one more value, not a NaN, and loses its least.
template <int kCount>
__device__ __forceinline__ void keep_sorted(float (&sorted)[kCount], float value) {
#pragma unroll
  for (int i = kCount - 1; i > 0; --i) sorted[i] = fmaxf(sorted[i], fminf(sorted[i - 1], value));
  sorted[0] = fmaxf(sorted[0], value);
}

__device__ __forceinline__ void order(float& high, float& low) {
  const float larger = fmaxf(high, low);
  low = fminf(high, low);
  high = larger;
}

/// Eight values in any order become descending: Batcher's odd-even merge sort, 19 exchanges.
__device__ __forceinline__ void sort_eight(float (&v)[8]) {
#pragma unroll
  for (int half = 0; half < 8; half += 4) {
    order(v[half], v[half + 1]);
    order(v[half + 2], v[half + 3]);
    order(v[half], v[half + 2]);
    order(v[half + 1], v[half + 3]);
    order(v[half + 1], v[half + 2]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) order(v[i], v[i + 4]);
  order(v[2], v[4]);
  order(v[3], v[5]);
#pragma unroll
  for (int i = 1; i < 7; i += 2) order(v[i], v[i + 1]);
}

/// A bitonic run in descending order.
template <int kCount>
__device__ __forceinline__ void sort_bitonic(float* values) {
#pragma unroll
  for (int step = kCount / 2; step > 0; step /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if ((i & step) == 0) order(values[i], values[i + step]);
    }
  }
}

template <int kCount>
__device__ __forceinline__ float element(const float* values, int index) {
  float result = values[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) result = index == i ? values[i] : result;
  return result;
}

/// The k-th largest of the sorted values of the four lanes of a quad, 1 <= k <= kMost; the same in each lane.
template <int kMost>
__device__ __forceinline__ float kth_of_quad(const float (&sorted)[kSorted], int k) {
  static_assert(kMost <= kMostBounded);
  // The larger of a[i] and b[n - 1 - i] over two descending runs are the n largest of both, as a bitonic run.
  constexpr int kKept = kMost <= kSorted ? kSorted : 2 * kSorted;
  float best[kKept];
#pragma unroll
  for (int i = 0; i < kSorted; ++i) {
    const float other = __shfl_xor_sync(kAllLanes, sorted[kSorted - 1 - i], 1);
    best[i] = fmaxf(sorted[i], other);
    if constexpr (kKept > kSorted) best[kSorted + i] = fminf(sorted[i], other);
  }
#pragma unroll
  for (int run = 0; run < kKept; run += kSorted) sort_bitonic<kSorted>(best + run);
  float all[kKept];
#pragma unroll
  for (int i = 0; i < kKept; ++i) all[i] = fmaxf(best[i], __shfl_xor_sync(kAllLanes, best[kKept - 1 - i], 2));
  sort_bitonic<kKept>(all);
  return element<kKept>(all, k - 1);
}

/// The same of both rows of a thread, k <= kSorted: each lane merges those of one row and gets the other's result.
__device__ __forceinline__ void kth_of_quads(const float (&sorted)[2][kSorted], int k, float (&kth)[2]) {
  const bool odd = threadIdx.x & 1;
  float best[kSorted];
#pragma unroll
  for (int i = 0; i < kSorted; ++i) {
    const float given = odd ? sorted[0][kSorted - 1 - i] : sorted[1][kSorted - 1 - i];
    const float kept = odd ? sorted[1][i] : sorted[0][i];
    best[i] = fmaxf(kept, __shfl_xor_sync(kAllLanes, given, 1));
  }
  sort_bitonic<kSorted>(best);
  float all[kSorted];
#pragma unroll
  for (int i = 0; i < kSorted; ++i) all[i] = fmaxf(best[i], __shfl_xor_sync(kAllLanes, best[kSorted - 1 - i], 2));
  sort_bitonic<kSorted>(all);
  const float mine = element<kSorted>(all, k - 1), other = __shfl_xor_sync(kAllLanes, mine, 1);
  kth[0] = odd ? other : mine;
  kth[1] = odd ? mine : other;
}

/// The same for the two best of each lane and k <= kFew.
__device__ __forceinline__ float kth_of_quad(const float (&sorted)[kFew], int k) {
  float high = sorted[0], low = sorted[1];
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    const float other_high = __shfl_xor_sync(kAllLanes, high, distance);
    const float other_low = __shfl_xor_sync(kAllLanes, low, distance);
    high = fmaxf(high, other_low);
    low = fmaxf(low, other_high);
    order(high, low);
  }
  return k == 1 ? high : low;
}

/// The next float below; -inf stays.
__device__ __forceinline__ float below(float x) {
  if (x == minus_infinity()) return x;
  if (x == 0.0f) return __int_as_float(0x80000001u);
  const int bits = __float_as_int(x);
  return __int_as_float(x > 0.0f ? bits - 1 : bits + 1);
}

}  // namespace moba::cuda
