// The products of attend_backward: a persistent kernel, one warpgroup that gathers (or brings packed tiles) and two
// that multiply.
//
// For a unit of 128 keys and each tile of R query rows (64 keys of the unit a warpgroup):
//   S^T = K Q^T, dP^T = V dO^T       [64 keys, R]   accumulators
//   P = exp2(S - lse), dS = P (dP - bias)            in registers; dS goes to shared memory
//   dV += P^T dO, dK += dS^T Q       [64 keys, D]   accumulators for the life of the item
//   dQ = dS K                        [R, D]          R / 64 or D / 64 of it a warpgroup
// dQ of a tile is multiplied with the next tile, when both warpgroups have stored dS; they work half a tile apart, and
// one's products run while the other computes. dQ is complete for the unit's 128 keys; through shared memory it goes to
// the tile's fp32 sums, added in turn after the units before it in the block, or to places of the unit alone (rounded
// to T), so that nothing is added out of order.
#pragma once

#include "cuda/dependent_launch.h"
#include "cuda/device/barrier.cuh"
#include "cuda/device/thread.cuh"
#include "cuda/sm90/backward.h"
#include "cuda/sm90/backward_feed.cuh"
#include "cuda/sm90/backward_gather.cuh"
#include "cuda/sm90/backward_multiply.cuh"
#include "cuda/sm90/backward_shared.cuh"

namespace moba::cuda {

template <class T, int kDim, bool kTurns>
__global__ void __launch_bounds__(BackwardShape<kDim>::kThreads, 1)
    backward_products_kernel(const __grid_constant__ BackwardChunk chunk) {
  using Shape = BackwardShape<kDim>;
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<BackwardShared<kDim, kTurns>*>(memory);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      shared.full[stage].init(kTurns ? 1 : 2 * 128);    // a gathering thread: once for its stores, once for its copies
      shared.empty[stage].init(4 * Shape::kConsumers);  // once a warp
    }
    for (int stage = 0; stage < kItemStages; ++stage) {
      shared.item_full[stage].init(1);
      shared.item_empty[stage].init(4);
    }
    for (Barrier& empty : shared.slopes_empty) empty.init(4 * Shape::kConsumers);
    shared.keys_full.init(kTurns ? 1 : 128);
    shared.keys_empty.init(4 * Shape::kConsumers);
    for (Barrier& full : shared.gradients_full) full.init(4 * Shape::kConsumers);
    shared.gradients_empty.init(kTurns ? 1 : 4);
    fence_barrier_init();
  }
  wait_for_launch_before();
  allow_launch_after();
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<kTurns ? 24 : 56>();
    if constexpr (kTurns) {
      switch (threadIdx.x / 32) {
        case 0: TileFeeder<kDim>(chunk, shared).run(); break;
        case 1: KeyFeeder<kDim>(chunk, shared).run(); break;
        default: GradientMover<kDim>(chunk, shared, static_cast<int>(threadIdx.x) / 32 - 2).run();
      }
    } else {
      Gatherer<T, kDim>(chunk, shared).run();
    }
  } else {
    take_registers<kTurns ? 240 : 224>();
    // So that the compiler keeps operands' descriptors in uniform registers: products of 32 cycles wait otherwise for
    // those of the next to be moved there.
    const int warpgroup = uniform(static_cast<int>(threadIdx.x) / 128) - 1;
    Multiplier<T, kDim, kTurns>(chunk, shared, warpgroup).run();
  }
}

}  // namespace moba::cuda
