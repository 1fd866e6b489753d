// Clusters of CTAs that see each other's shared memory, and the start of a kernel before the one before it has ended.
#pragma once

#include <cstdint>

namespace moba::cuda {

__device__ __forceinline__ int cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

/// All threads of all CTAs are here, and see what the others wrote to shared memory before.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// The same place in the shared memory of another CTA of the cluster.
template <class T>
__device__ __forceinline__ const T* of_rank(const T* shared, int rank) {
  std::uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(reinterpret_cast<std::uint64_t>(shared)), "r"(rank));
  return reinterpret_cast<const T*>(address);
}

/// The kernel launched next may start now, where it was launched so.
__device__ __forceinline__ void let_next_kernel_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/// The kernel before has ended and what it wrote is visible; at once where this one was launched in the ordinary way.
__device__ __forceinline__ void wait_for_previous_kernel() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

}  // namespace moba::cuda
