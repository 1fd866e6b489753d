// The best one or two blocks of the rows of an accumulator tile, exactly: each lane keeps the best two of its own
// columns in registers, and the four lanes of a row put theirs together at the end.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/softmax.cuh"
#include "cuda/sm90/entry.cuh"
#include "cuda/sm90/score_filter.cuh"
#include "cuda/sm90/sorted_scores.cuh"

namespace moba::cuda {

/// The choice of one warp for its 16 rows (two of each thread), over one item; k <= kFew. See BestBlocks.
class BestFew {
 public:
  static constexpr int kGroups = 4;  // warpgroups of a block of threads
  static constexpr int kColumns = 64;
  static constexpr int queue_bytes(int) { return 0; }

  __device__ __forceinline__ void start(std::uint32_t, std::uint32_t stage, int, int k) {
    k_ = k;
    stage_ = stage;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      threshold_[i] = minus_infinity();
      high_[i] = low_[i] = {minus_infinity(), 0x7fffffff};
    }
  }

  __device__ __forceinline__ bool settles(int index) const {
    return index > 0;
  }
  /// Scores at or below the k-th best of the quad so far cannot be chosen any more.
  __device__ __forceinline__ void settle() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sorted[kFew] = {high_[i].score, low_[i].score};
      threshold_[i] = kth_of_quad(sorted, k_);
    }
  }

  __device__ __forceinline__ void take(const float (&scores)[kColumns / 2], const TileColumns& tile, int index) {
    if (index == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float maxima[kSorted], sorted[kFew] = {minus_infinity(), minus_infinity()};
        best_maxima<kColumns>(scores, tile, i, maxima);
#pragma unroll
        for (const float high : maxima) keep_sorted(sorted, high);
        threshold_[i] = below(kth_of_quad(sorted, k_));
      }
    }
    std::uint32_t mask[2];
    passing<kColumns>(scores, threshold_, tile, mask);
    sweep<kColumns>(
        scores, mask, stage_, tile.first, [](const int(&)[2]) { return std::true_type(); },
        [&](const float(&score)[2], const std::int32_t(&column)[2]) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            // Columns ascend, so an equal score comes after those that are there.
            const bool above = score[i] > high_[i].score, between = score[i] > low_[i].score;
            const std::int32_t lower = between ? column[i] : low_[i].column;
            low_[i] = {fmaxf(low_[i].score, fminf(high_[i].score, score[i])), above ? high_[i].column : lower};
            high_[i] = {fmaxf(high_[i].score, score[i]), above ? column[i] : high_[i].column};
          }
        });
  }

  /// After the last tile: calls use(row i, place among the row's chosen in ascending order, column) for each chosen
  /// column; `counts[i]` is how many the row has.
  template <class Use>
  __device__ __forceinline__ void finish(int (&counts)[2], Use&& use) {
    const int lane = threadIdx.x & 3;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2) {
        const Entry high = exchanged(high_[i], distance), low = exchanged(low_[i], distance);
        const bool mine = better(high_[i], high);
        const Entry loser = mine ? high : high_[i], next = mine ? low_[i] : low;
        if (!mine) high_[i] = high;
        low_[i] = better(loser, next) ? loser : next;
      }
      const bool one = high_[i].score > minus_infinity(), two = k_ > 1 && low_[i].score > minus_infinity();
      counts[i] = one + two;
      const std::int32_t first = two ? min(high_[i].column, low_[i].column) : high_[i].column;
      const std::int32_t second = max(high_[i].column, low_[i].column);
      if (lane < counts[i]) use(i, lane, lane == 0 ? first : second);
    }
  }

 private:
  __device__ __forceinline__ static Entry exchanged(const Entry& entry, int distance) {
    return {__shfl_xor_sync(kAllLanes, entry.score, distance), __shfl_xor_sync(kAllLanes, entry.column, distance)};
  }

  Entry high_[2], low_[2];
  float threshold_[2];
  std::uint32_t stage_;
  int k_;
};

}  // namespace moba::cuda
