#include "cuda/sm90/backward.h"

#include "cuda/cuda_check.h"
#include "cuda/instances.h"
#include "cuda/sm90/backward_kernel.cuh"

namespace moba::cuda {

void launch_backward_products(const BackwardChunk& chunk, DType dtype, int head_dim, int processors,
                              cudaStream_t stream) {
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    const auto kernel = backward_products_kernel<T, kDim>;
    constexpr int kBytes = sizeof(BackwardShared<kDim>) + 1024;  // room to align
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
               "cudaFuncSetAttribute(attend_backward)");
    kernel<<<processors, BackwardShape<kDim>::kThreads, kBytes, stream>>>(chunk);
    check_cuda(cudaGetLastError(), "attend_backward: products");
  });
}

}  // namespace moba::cuda
