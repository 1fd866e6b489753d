// The end of a row in attend_own_kernel: its partial results are added, slot by slot, and out and lse are written.
#pragma once

#include "cuda/attend.h"
#include "cuda/device/element.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/sm90/own_feed.cuh"

namespace moba::cuda::own {

/// exp(lse - high), 0 for -inf.
__device__ __forceinline__ float weight_of(float lse, float high) {
  return exp2_fast((lse - (high == minus_infinity() ? 0.0f : high)) * kLog2E);
}

/// The two rows of a thread as sums of weighted results: o * factor with this lane's columns, the sum of the weights,
/// and the log-sum-exp to which the weights relate, so that none of them is above 1.
template <int kDim>
struct MergedRows {
  float o[kDim / 2];
  float factor[2];
  float high[2], total[2];

  /// Begins with o * factor of the own block, which is 0 where the row sees no key.
  __device__ __forceinline__ void begin(const float (&lse)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      high[i] = lse[i];
      total[i] = weight_of(lse[i], high[i]);
    }
  }

  /// Turns log-sum-exps of slots into weights, 0 where there is no partial result, and relates o to them.
  __device__ __forceinline__ void weigh(float (&lse)[kLseSlots][2]) {
    float scale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float before = high[i];
#pragma unroll
      for (int slot = 0; slot < kLseSlots; ++slot) {
        if (__float_as_uint(lse[slot][i]) == 0xffffffffu) lse[slot][i] = minus_infinity();
        high[i] = fmaxf(high[i], lse[slot][i]);
      }
      const float shrink = weight_of(before, high[i]);
      total[i] *= shrink;
#pragma unroll
      for (int slot = 0; slot < kLseSlots; ++slot) {
        lse[slot][i] = weight_of(lse[slot][i], high[i]);
        total[i] += lse[slot][i];
      }
      scale[i] = factor[i] * shrink;
      factor[i] = 1.0f;
    }
    scale_rows<kDim>(o, scale);
    if (__any_sync(0xffffffffu, scale[0] == 0.0f || scale[1] == 0.0f)) {  // what counts nothing may be infinite
#pragma unroll
      for (int j = 0; j < kDim / 2; ++j) o[j] = scale[j >> 1 & 1] == 0.0f ? 0.0f : o[j];
    }
  }

  /// Adds a slot, whose results lie in shared memory in the order of Partials: this lane's part of the first row, and 8
  /// rows on that of the second.
  template <class T>
  __device__ __forceinline__ void add(const float (&weight)[2], T* results) {
    const auto words_of = [&](int i, int part) { return reinterpret_cast<uint4*>(results + i * 8 * kDim + part * 32); };
    // Where there is none it may be anything, NaN too.
    if (__any_sync(0xffffffffu, weight[0] == 0.0f || weight[1] == 0.0f)) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (weight[i] != 0.0f) continue;
#pragma unroll
        for (int part = 0; part < kDim / 32; ++part) *words_of(i, part) = uint4{0, 0, 0, 0};
      }
      fence_async_proxy();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int part = 0; part < kDim / 32; ++part) {
        const uint4 words = *words_of(i, part);
        const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 pair = unpack<T>(word[j]);
          const int at = 4 * (4 * part + j) + 2 * i;
          o[at] = fmaf(weight[i], pair.x, o[at]);
          o[at + 1] = fmaf(weight[i], pair.y, o[at + 1]);
        }
      }
    }
  }

  /// What the rows' results are to be multiplied by.
  __device__ __forceinline__ void finish(float (&scale)[2], float (&lse)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scale[i] = total[i] == 0.0f ? 0.0f : factor[i] * reciprocal_fast(total[i]);
      const float offset = high[i] == minus_infinity() ? 0.0f : high[i];
      lse[i] = total[i] == 0.0f ? minus_infinity() : fmaf(log2_fast(total[i]), kLn2, offset);
    }
  }
};

/// The warp's 16 rows of an accumulator, scaled, to `room` in shared memory (16 rows of kDim elements).
template <class T, int kDim>
__device__ __forceinline__ void rows_to_shared(T* room, const float (&o)[kDim / 2], const float (&scale)[2]) {
  constexpr int kChunks = kDim / 8;
  const int lane = threadIdx.x % 32, row = lane % 16;
  const std::uint32_t to = shared_address(room) + row * kDim * sizeof(T);
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    std::uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = pack<T>(o[8 * step + 2 * i] * scale[i & 1], o[8 * step + 2 * i + 1] * scale[i & 1]);
    }
    const int chunk = (2 * step + lane / 16) ^ (row & 7);
    static_assert(kChunks % 8 == 0);
    store_matrices(to + chunk * 16, words);
  }
}

/// They again, in whole rows: lane l gets 16 bytes of row share_row(i) for each i.
template <int kDim>
__device__ __forceinline__ int share_row(int i) {
  constexpr int kRowsAtOnce = 32 / (kDim / 8);
  return i * kRowsAtOnce + threadIdx.x % 32 / (kDim / 8);
}
template <class T, int kDim>
__device__ __forceinline__ void rows_from_shared(uint4 (&words)[kDim / 16], const T* room) {
  const int chunk = threadIdx.x % (kDim / 8);
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const int row = share_row<kDim>(i);
    words[i] = *reinterpret_cast<const uint4*>(room + row * kDim + (chunk ^ (row & 7)) * 8);
  }
}

}  // namespace moba::cuda::own
