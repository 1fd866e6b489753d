// The best of up to 1100 scores by one warp: their number is exact, ties go to the lower index.
#pragma once

#include <cstdint>

#include "cuda/device/softmax.cuh"

namespace moba::cuda {

/// Scores as integers of the same order; 0 for what is never chosen, NaN and -inf. The two zeros are equal.
__device__ __forceinline__ std::uint32_t key_of(float score) {
  const std::uint32_t bits = __float_as_uint(score + 0.0f);
  if (!(score > minus_infinity())) return 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// Calls keep(place, index, key, kept) for 32 indices at a time, whole warps; kept holds for the `wanted` greatest of
/// load(0), load(1), … load(count - 1), whose places count from 0 in the order of the indices: fewer where fewer are
/// not 0. Returns their number. count <= 32 * kPerLane. All is loaded before the first call.
template <int kPerLane, class Load, class Keep>
__device__ __forceinline__ int keep_best(int count, int wanted, Load&& load, Keep&& keep) {
  constexpr std::uint32_t kAll = 0xffffffffu;
  const int lane = threadIdx.x & 31;
  std::uint32_t keys[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) keys[j] = j * 32 + lane < count ? load(j * 32 + lane) : 0u;
  const auto at_least = [&](std::uint32_t bound) {
    int mine = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) mine += keys[j] >= bound;
    return static_cast<int>(__reduce_add_sync(kAll, static_cast<unsigned>(mine)));
  };
  // The greatest bound that `wanted` keys reach, two bits at a time; any that exactly so many reach will do.
  std::uint32_t bound = 1;
  int reach = at_least(1);
  if (reach > wanted) {
    bound = 0;
    for (int shift = 30; shift >= 0 && reach != wanted; shift -= 2) {
      int more[3];
#pragma unroll
      for (unsigned i = 0; i < 3; ++i) more[i] = at_least(bound | (i + 1) << shift);
#pragma unroll
      for (unsigned i = 3; i > 0; --i) {
        if (more[i - 1] < wanted) continue;
        bound |= i << shift;
        reach = more[i - 1];
        break;
      }
    }
  }
  int ties = reach > wanted ? wanted - at_least(bound + 1) : count;  // keys equal to the bound that are kept
  int place = 0;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    if (j * 32 >= count) break;
    const unsigned below_me = (1u << lane) - 1u;
    const unsigned equal = __ballot_sync(kAll, keys[j] == bound);
    const bool kept = keys[j] > bound || (keys[j] == bound && __popc(equal & below_me) < ties);
    const unsigned all_kept = __ballot_sync(kAll, kept);
    keep(place + __popc(all_kept & below_me), j * 32 + lane, keys[j], kept);
    ties -= __popc(equal & all_kept);
    place += __popc(all_kept);
  }
  return place;
}

}  // namespace moba::cuda
