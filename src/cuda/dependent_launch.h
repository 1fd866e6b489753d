// Launches that begin while the kernel before them in the stream still runs: blocks of threads come to the machine
// early and wait there, which hides most of what a launch costs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

#include "cuda/cuda_check.h"

namespace moba::cuda {

#ifdef __CUDACC__
/// First statement of every kernel that launch_dependent() launches: what the stream did before is complete and visible
/// from here on. The launch after this one may begin once all blocks of threads have come so far, and waits in its
/// turn.
__device__ __forceinline__ void wait_for_launches_before() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
#endif

/// Launches `kernel` with as much dynamic shared memory as given; errors carry its name.
template <class... Parameters, class... Arguments>
void launch_dependent(void (*kernel)(Parameters...), const char* name, dim3 grid, dim3 threads,
                      std::int64_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  constexpr std::int64_t kAlwaysAllowed = 48 * 1024;
  if (shared_bytes > kAlwaysAllowed) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               name);
  }
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...), name);
}

}  // namespace moba::cuda
