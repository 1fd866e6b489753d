// What the compiler is told about a thread's values.
#pragma once

namespace moba::cuda {

/// A value that is the same in all lanes of a warp, made known to be: what follows from it needs no registers of lanes.
__device__ __forceinline__ int uniform(int value) {
  return __shfl_sync(0xffffffffu, value, 0);
}

/// threadIdx.x, which the compiler must not keep: what is made from it is made anew where it is needed, because there
/// are no registers to hold it.
__device__ __forceinline__ int thread_again() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

}  // namespace moba::cuda
