// Sums after the products of attend_backward: dk and dv of cut units from their slabs, dq from its places. It waits for
// device memory alone, so its few warps have much on its way.
#include "cuda/dependent_launch.h"
#include "cuda/instances.h"
#include "cuda/sm90/backward.h"
#include "cuda/sm90/backward_places.cuh"
#include "cuda/sm90/backward_slabs.cuh"

namespace moba::cuda {
namespace {

constexpr int kWarps = 16;

struct SumsShared {
  PieceStage stages[kWarps][kPieceStages];
};
static_assert(sizeof(SumsShared) <= 227 * 1024);

template <class T, int kDim>
__global__ void __launch_bounds__(kWarps * 32, 1) backward_sums_kernel(const __grid_constant__ BackwardChunk chunk) {
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<SumsShared*>(memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (lane < kPieceStages) shared.stages[warp][lane].full.init(1);
  fence_barrier_init();
  __syncwarp();
  wait_for_launches_before();
  add_slabs<T, kDim>(chunk);
  if (chunk.turns == nullptr) PlaceSums<T, kDim>(chunk, shared.stages[warp]).run();
}

}  // namespace

void launch_backward_sums(const BackwardChunk& chunk, DType dtype, int head_dim, int processors, cudaStream_t stream) {
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    launch_dependent(backward_sums_kernel<T, kDim>, "attend_backward: sums", static_cast<unsigned>(processors),
                     kWarps * 32, sizeof(SumsShared), stream, chunk);
  });
}

}  // namespace moba::cuda
