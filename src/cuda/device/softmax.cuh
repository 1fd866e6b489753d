// Softmax of accumulator tiles in base 2, with a running maximum and sum for the two rows of each thread.
#pragma once

#include <cstdint>

#include "cuda/device/quad.cuh"

namespace moba::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float minus_infinity() {
  return __int_as_float(0xff800000);
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The state of online softmax for rows i = 0, 1 of a thread. `maximum` is of the unscaled scores, over the quad;
/// `sum` is this lane's share. With no key yet: {-inf, 0}.
struct RowState {
  float maximum[2] = {minus_infinity(), minus_infinity()};
  float sum[2] = {0.0f, 0.0f};

  /// Scores become probabilities relative to the new maximum; returns in `shrink` the factors for what was summed
  /// before. `scale_log2` is softmax_scale * log2(e) > 0. Masked scores are -inf. Where kFirst the state is new.
  template <int kN, bool kFirst>
  __device__ __forceinline__ void update(float (&scores)[kN / 2], float scale_log2, float (&shrink)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float high = kFirst ? minus_infinity() : maximum[i];
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) high = fmaxf(high, fmaxf(scores[4 * j + 2 * i], scores[4 * j + 2 * i + 1]));
      high = quad_max(high);
      // A row with no key so far has the maximum -inf; against 0 its probabilities are exp2(-inf) = 0 and not NaN.
      const float offset = high == minus_infinity() ? 0.0f : high * scale_log2;
      shrink[i] = kFirst ? 0.0f : exp2_fast(maximum[i] * scale_log2 - offset);
      maximum[i] = high;
      float partial = 0.0f;
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[4 * j + 2 * i + c];
          score = exp2_fast(fmaf(score, scale_log2, -offset));
          partial += score;
        }
      }
      sum[i] = kFirst ? partial : fmaf(sum[i], shrink[i], partial);
    }
  }

  /// After the last tile: the row's factor for its summed values and its log-sum-exp (natural); {0, -inf} without keys.
  __device__ __forceinline__ void finish(float softmax_scale, float (&factor)[2], float (&lse)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float total = quad_sum(sum[i]);
      const bool empty = maximum[i] == minus_infinity() && total == 0.0f;
      factor[i] = empty ? 0.0f : reciprocal_fast(total);
      lse[i] = empty ? minus_infinity() : fmaf(maximum[i], softmax_scale, log2_fast(total) * kLn2);
    }
  }
};

/// d[:, rows i] *= factor[i].
template <int kN>
__device__ __forceinline__ void scale_rows(float (&d)[kN / 2], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[i] *= factor[i >> 1 & 1];
}

}  // namespace moba::cuda
