// The best blocks of the rows of an accumulator tile, exactly, for any k. Few warps share a multiprocessor here, so
// what counts is latency: entries are read several at a time, and the two rows of a thread go side by side.
#pragma once

#include <cstdint>

#include "cuda/inverse.h"
#include "cuda/sm90/score_queues.cuh"

namespace moba::cuda {

/// The choice of one warp for its 16 rows (two of each thread), over one item.
class BestBlocks : public ScoreQueues<static_cast<int>(kMaxBudget), 64> {
 public:
  static constexpr int kGroups = 4;  // warpgroups of a block of threads
  __device__ __forceinline__ void settle() { tighten(true); }

  /// After the last tile: calls use(row i, place among the row's chosen in ascending order, column) for each chosen
  /// column; `counts[i]` is how many the row has. Queues are consumed.
  template <class Use>
  __device__ __forceinline__ void finish(int (&counts)[2], Use&& use) {
    if (bounded()) {
      float bound[2];
      bounds<2>(begin_, end_, bound);
      drop_below<2>(begin_, end_, bound);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) counts[i] = held_of_quad(end_[i] - begin_[i]);
    if (__any_sync(kAllLanes, counts[0] > k_ || counts[1] > k_)) keep_best(counts);
    if (bounded()) {
      use_lists(counts, use);
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        use_queues(begin_[i], end_[i], [&](int place, std::int32_t column) { use(i, place, column); });
    }
    __syncwarp();
  }

 private:
  /// finish() for k <= kMostBounded: the quad lays its columns in one row of words, behind what the queues hold now,
  /// and each lane finds the places of every fourth.
  template <class Use>
  __device__ __forceinline__ void use_lists(const int (&counts)[2], Use&& use) const {
    constexpr int kEach = kMostBounded / 4;
    const int lane = threadIdx.x & 3;
    std::uint32_t list[2];
    std::uint32_t longest = 0;
    int at[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      list[i] = begin_[i] - lane * 8 + static_cast<std::uint32_t>(capacity(k_) - kEach) * kEntryStride;
      const std::uint32_t bytes = end_[i] - begin_[i];
      longest = max(longest, bytes);
      const int mine = static_cast<int>(bytes / kEntryStride);
      const int next = __shfl_xor_sync(kAllLanes, mine, 1);
      const int pair = mine + next;
      const int other = __shfl_xor_sync(kAllLanes, pair, 2);
      at[i] = (lane & 1 ? next : 0) + (lane & 2 ? other : 0);
    }
    longest = __reduce_max_sync(kAllLanes, longest);
    for (std::uint32_t step = 0; step < longest; step += kEntryStride) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (step < end_[i] - begin_[i]) store_word(word(list[i], at[i]++), load_word(begin_[i] + step + 4));
      }
    }
    __syncwarp();
    std::int32_t mine[2][kEach] = {};
    int place[2][kEach] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int e = 0; e < kEach; ++e)
        mine[i][e] = 4 * e + lane < counts[i] ? load_word(word(list[i], 4 * e + lane)) : 0;
    }
#pragma unroll
    for (int t = 0; t < kMostBounded; ++t) {
      if (t >= k_) break;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int32_t other = t < counts[i] ? load_word(word(list[i], t)) : 0x7fffffff;
#pragma unroll
        for (int e = 0; e < kEach; ++e) place[i][e] += other < mine[i][e];
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        if (4 * e + lane < counts[i]) use(i, place[i][e], mine[i][e]);
      }
    }
  }
  __device__ __forceinline__ static std::uint32_t word(std::uint32_t list, int index) {
    return list + static_cast<std::uint32_t>(index & 3) * 8 + static_cast<std::uint32_t>(index >> 2) * kEntryStride;
  }
};

}  // namespace moba::cuda
