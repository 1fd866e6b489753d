// A row of D elements by one warp: each lane has D / 32 of them.
#pragma once

#include "cuda/device/element.cuh"
#include "cuda/sm90/backward.h"

namespace moba::cuda {

template <class T, int kDim>
struct WarpRow {
  static constexpr int kShare = kDim / 32;  // elements of a lane
  static_assert(kShare == 2 || kShare == 4);

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) & 31; }

  /// A lane's part of a row of T.
  struct Words {
    std::uint32_t words[kShare / 2];
    __device__ __forceinline__ void add_to(float (&sums)[kShare]) const {
#pragma unroll
      for (int i = 0; i < kShare / 2; ++i) {
        const float2 pair = unpack<T>(words[i]);
        sums[2 * i] += pair.x;
        sums[2 * i + 1] += pair.y;
      }
    }
  };
  static __device__ __forceinline__ Words load_shared(const std::uint16_t* row) {
    Words result;
    if constexpr (kShare == 4) {
      const uint2 both = *reinterpret_cast<const uint2*>(row + lane() * kShare);
      result.words[0] = both.x, result.words[1] = both.y;
    } else {
      result.words[0] = *reinterpret_cast<const std::uint32_t*>(row + lane() * kShare);
    }
    return result;
  }

  static __device__ __forceinline__ void store(T* row, const float (&x)[kShare]) {
    T* to = row + lane() * kShare;
    if constexpr (kShare == 4) {
      *reinterpret_cast<uint2*>(to) = {pack<T>(x[0], x[1]), pack<T>(x[2], x[3])};
    } else {
      *reinterpret_cast<std::uint32_t*>(to) = pack<T>(x[0], x[1]);
    }
  }

  static __device__ __forceinline__ void load(const float* row, float (&x)[kShare]) {
    if constexpr (kShare == 4) {
      const float4 all = *reinterpret_cast<const float4*>(row + lane() * kShare);
      x[0] = all.x, x[1] = all.y, x[2] = all.z, x[3] = all.w;
    } else {
      const float2 both = *reinterpret_cast<const float2*>(row + lane() * kShare);
      x[0] = both.x, x[1] = both.y;
    }
  }
  static __device__ __forceinline__ void store(float* row, const float (&x)[kShare]) {
    if constexpr (kShare == 4) {
      *reinterpret_cast<float4*>(row + lane() * kShare) = {x[0], x[1], x[2], x[3]};
    } else {
      *reinterpret_cast<float2*>(row + lane() * kShare) = {x[0], x[1]};
    }
  }
};

/// The next number of a counter; the same in all lanes.
__device__ __forceinline__ std::int64_t take_number(std::int32_t* counter) {
  std::int32_t taken = 0;
  if ((threadIdx.x & 31) == 0) taken = atomicAdd(counter, 1);
  return __shfl_sync(0xffffffffu, taken, 0);
}

}  // namespace moba::cuda
