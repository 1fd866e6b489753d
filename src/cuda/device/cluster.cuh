// Clusters of CTAs that see each other's shared memory.
#pragma once

#include <cstdint>

namespace moba::cuda {

__device__ __forceinline__ int cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

/// Says that this thread is here; all threads of all CTAs of the cluster do so before any leaves cluster_wait(), and
/// then see what the others wrote before.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

/// The same place in the shared memory of another CTA of the cluster.
template <class T>
__device__ __forceinline__ const T* of_rank(const T* shared, int rank) {
  std::uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(reinterpret_cast<std::uint64_t>(shared)), "r"(rank));
  return reinterpret_cast<const T*>(address);
}

}  // namespace moba::cuda
