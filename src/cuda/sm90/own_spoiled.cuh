// Rows of attend_own_kernel whose result became NaN or infinite: a value of a masked key may be the cause (0 * NaN), so
// their own keys are attended once more, one at a time.
#pragma once

#include <cfloat>

#include "cuda/attend.h"
#include "cuda/device/element.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/sm90/own_feed.cuh"

namespace moba::cuda::own {

/// One row by all lanes of a warp; lane l has columns l + 32 * i of the result.
template <class T, int kDim>
__device__ __noinline__ void attend_row_alone(const OwnArgs& args, const T* q, const T* k, const T* v,
                                              std::int32_t keys, float (&o)[kDim / 32], float& lse) {
  constexpr int kShare = kDim / 32;
  const int lane = threadIdx.x % 32;
  float maximum = minus_infinity(), sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kShare; ++i) o[i] = 0.0f;
  for (std::int32_t key = 0; key < keys; ++key) {
    float score = 0.0f;
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      score += to_float(q[lane + 32 * i]) * to_float(k[key * args.k_row_stride + lane + 32 * i]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) score += __shfl_xor_sync(0xffffffffu, score, step);
    score *= args.softmax_scale;
    const float high = fmaxf(maximum, score), offset = high == minus_infinity() ? 0.0f : high;
    const float shrink = expf(maximum - offset), weight = expf(score - offset);
    maximum = high;
    sum = sum * shrink + weight;
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      o[i] = o[i] * shrink + weight * to_float(v[key * args.v_row_stride + lane + 32 * i]);
    }
  }
  const bool empty = maximum == minus_infinity() && sum == 0.0f;
#pragma unroll
  for (int i = 0; i < kShare; ++i) o[i] = empty ? 0.0f : o[i] / sum;
  lse = empty ? minus_infinity() : maximum + logf(sum);
}

/// The spoiled among the warp's rows, one after the other: o * factor and lse become right.
template <class T, int kDim, int kGroups>
__device__ __forceinline__ void attend_spoiled_rows(const OwnArgs& args, const Unit<kGroups>& unit,
                                                    const GroupPart& part, std::int64_t first_row, float (&o)[kDim / 2],
                                                    float (&factor)[2], float (&lse)[2]) {
  bool spoiled[2] = {false, false};
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) spoiled[i >> 1 & 1] |= !(fabsf(o[i]) <= FLT_MAX);
  const unsigned any[2] = {__ballot_sync(0xffffffffu, spoiled[0]), __ballot_sync(0xffffffffu, spoiled[1])};
  if ((any[0] | any[1]) == 0) return;
  const int lane = threadIdx.x % 32;
  const std::int32_t kv_head = unit.head / args.heads_per_kv;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    for (int quad = 0; quad < 8; ++quad) {
      if ((any[i] >> (4 * quad) & 15u) == 0) continue;
      const int row = threadIdx.x % 128 / 32 * 16 + quad + 8 * i;
      if (row >= part.rows) continue;
      const std::int32_t position = part.position + row;
      const std::int32_t low = position < 0 ? 0 : block_start(position, args.block_size);
      const std::int64_t begin = unit.first_key + low;
      float result[kDim / 32], row_lse = 0.0f;
      attend_row_alone<T, kDim>(
          args, static_cast<const T*>(args.q) + (first_row + row) * args.q_row_stride + unit.head * args.q_head_stride,
          static_cast<const T*>(args.k) + begin * args.k_row_stride + kv_head * args.k_head_stride,
          static_cast<const T*>(args.v) + begin * args.v_row_stride + kv_head * args.v_head_stride,
          max(position + 1, 0) - low, result, row_lse);
      const bool mine = lane / 4 == quad;
      if (mine) lse[i] = row_lse, factor[i] = 1.0f;
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {  // column 8 * j + 2 * (lane % 4) + c
          const float value = __shfl_sync(0xffffffffu, result[j / 4], j % 4 * 8 + 2 * (lane % 4) + c);
          if (mine) o[4 * j + 2 * i + c] = value;
        }
      }
    }
  }
}

}  // namespace moba::cuda::own
