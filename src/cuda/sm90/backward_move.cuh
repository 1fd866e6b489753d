// How gathering warps of the products of attend_backward take dq away, each its own rows of a tile.
#pragma once

#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/thread.cuh"
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
      wait_bulk_reads();
      __syncwarp();
      if (lane() == 0) shared_.gradients_empty.arrive();
    }
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) & 31; }

  /// By one lane, with addresses that are the same in all: the copy engine's are, and where each lane has one of its
  /// own the compiler makes a loop that takes twice as long. Unrolled further, this takes more registers than there
  /// are.
  __device__ __forceinline__ void move_rows(std::uint32_t place) const {
    constexpr int kRowBytes = GradientRows<kDim, false>::kRowBytes;
    const std::uint32_t from = shared_address(shared_.query_gradients) +
                               uniform(static_cast<int>(threadIdx.x) >> 5) * Rows::kRowsAtOnce * kRowBytes;
    const std::uint64_t policy = evict_first();
#pragma unroll 4
    for (int i = 0; i < Rows::kWarpRows; ++i) {
      const std::uint32_t to = __shfl_sync(0xffffffffu, place, i);
      store_bulk_if(lane() == 0 && to != kNoPlace,
                    static_cast<T*>(chunk_.partials) + static_cast<std::uint64_t>(to) * kDim,
                    from + (i / Rows::kRowsAtOnce * Rows::kTurn + i % Rows::kRowsAtOnce) * kRowBytes, kDim * 2, policy);
    }
    commit_bulk_stores();
  }

  const BackwardChunk& chunk_;
  Shared& shared_;
  std::uint32_t gradients_parity_ = 0;
  int pending_ = 0;
  std::uint32_t places_[3] = {};  // the newest first
};

}  // namespace moba::cuda
