// How gathering warps of the products of attend_backward take dq away, each its own rows of a tile.
#pragma once

#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/sm90/backward.h"
#include "cuda/sm90/backward_shared.cuh"

namespace moba::cuda {

/// Which rows of a tile a gathering warp has: the four take turns of kRowsAtOnce, so that those that a lane copies are
/// a multiple of 8 apart and have one swizzle.
template <int kDim>
struct GatheredRows {
  static constexpr int kWarpRows = BackwardShape<kDim>::kRows / 4;
  static constexpr int kRowsAtOnce = 32 / (kDim / 8);
  static constexpr int kTurn = 4 * kRowsAtOnce;
  static_assert(kTurn % 8 == 0);

  /// The row of a tile that a lane below kWarpRows looks after.
  static __device__ __forceinline__ int of_lane() {
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
    return lane / kRowsAtOnce * kTurn + warp * kRowsAtOnce + lane % kRowsAtOnce;
  }
};

template <class T, int kDim>
class RowMover {
 public:
  using Rows = GatheredRows<kDim>;
  using Shared = BackwardShared<kDim, false>;

  __device__ RowMover(const BackwardChunk& chunk, Shared& shared) : chunk_(chunk), shared_(shared) {}

  /// A tile to be moved after those that are pending, of which there may be two. `place`: of the row of this lane.
  __device__ __forceinline__ void add(std::uint32_t place) {
    places_[2] = places_[1], places_[1] = places_[0], places_[0] = place;
    ++pending_;
  }

  /// Moves dq of tiles, the oldest first, until `keep` are pending.
  __device__ __forceinline__ void drain(int keep) {
    for (; pending_ > keep; --pending_) {
      shared_.gradients_full[0].wait(gradients_parity_);
      gradients_parity_ ^= 1u;
      move_rows(pending_ == 3 ? places_[2] : pending_ == 2 ? places_[1] : places_[0]);
      __syncwarp();
      if (lane() == 0) shared_.gradients_empty.arrive();
    }
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) & 31; }

  /// Pieces of 16 bytes by all lanes: a bulk store for each row would cost the copy engine some 40 cycles, however
  /// short the row.
  __device__ __forceinline__ void move_rows(std::uint32_t place) const {
    constexpr int kChunks = kDim / 8, kRowBytes = GradientRows<kDim, false>::kRowBytes;
    constexpr int kSteps = Rows::kWarpRows / Rows::kRowsAtOnce, kBatch = 4;
    const int chunk = lane() % kChunks, sub_row = lane() / kChunks;
    const std::uint32_t from = shared_address(shared_.query_gradients) +
                               ((static_cast<int>(threadIdx.x) >> 5) * Rows::kRowsAtOnce + sub_row) * kRowBytes +
                               chunk * 16;
    T* const to = static_cast<T*>(chunk_.partials) + chunk * 8;
#pragma unroll
    for (int first = 0; first < kSteps; first += kBatch) {
      uint4 words[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) words[i] = load_words(from + (first + i) * Rows::kTurn * kRowBytes);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const std::uint32_t row = __shfl_sync(0xffffffffu, place, (first + i) * Rows::kRowsAtOnce + sub_row);
        store_once_if(row != kNoPlace, to + static_cast<std::uint64_t>(row) * kDim, words[i]);
      }
    }
  }

  const BackwardChunk& chunk_;
  Shared& shared_;
  std::uint32_t gradients_parity_ = 0;
  int pending_ = 0;
  std::uint32_t places_[3] = {};  // the newest first
};

}  // namespace moba::cuda
