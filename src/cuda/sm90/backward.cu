#include "cuda/sm90/backward.h"

#include "cuda/dependent_launch.h"
#include "cuda/instances.h"
#include "cuda/sm90/backward_kernel.cuh"

namespace moba::cuda {

void launch_backward_products(const BackwardChunk& chunk, DType dtype, int head_dim, int processors,
                              cudaStream_t stream) {
  const auto launch = [&]<class T, int kDim, bool kTurns>() {
    const auto kernel = backward_products_kernel<T, kDim, kTurns>;
    constexpr int kBytes = sizeof(BackwardShared<kDim, kTurns>);
    static_assert(kBytes <= 227 * 1024);
    launch_dependent(kernel, "attend_backward: products", static_cast<unsigned>(processors),
                     BackwardShape<kDim>::kThreads, kBytes, stream, chunk);
  };
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    if constexpr (takes_turns(kFewestTurns, kDim)) {
      if (chunk.turns != nullptr) return launch.template operator()<T, kDim, true>();
    }
    launch.template operator()<T, kDim, false>();
  });
}

}  // namespace moba::cuda
