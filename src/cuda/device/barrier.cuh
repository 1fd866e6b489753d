// mbarriers in shared memory, named barriers of part of a thread block, and the fences between the two views
// ("proxies") of shared memory: ordinary loads and stores, and the tensor cores and copy engine.
#pragma once

#include <cstdint>

namespace moba::cuda {

/// The address that PTX uses for shared memory.
__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// An mbarrier: completes a phase when `arrivals` threads have arrived and all announced bytes have come.
/// Waiting for parity p returns once the phase of that parity (0 first) is complete.
struct Barrier {
  std::uint64_t bits;

  __device__ __forceinline__ void init(std::uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&bits)), "r"(arrivals));
  }
  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&bits)) : "memory");
  }
  /// Arrives once for all lanes of a warp, after what each of them did.
  __device__ __forceinline__ void arrive_by_warp() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive();
  }
  /// Arrives once and announces the bytes that copies will bring in this phase.
  __device__ __forceinline__ void arrive_expecting(std::uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&bits)), "r"(bytes)
                 : "memory");
  }
  /// done(), answered at once: for one thing to do while waiting for another.
  __device__ __forceinline__ bool done_now(std::uint32_t parity) {
    std::uint32_t complete;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(complete)
        : "r"(shared_address(&bits)), "r"(parity)
        : "memory");
    return complete != 0;
  }
  /// Arrives when all earlier cp.async of this thread are complete; counts as one of the barrier's arrivals.
  __device__ __forceinline__ void arrive_after_copies() {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&bits)) : "memory");
  }
  __device__ __forceinline__ bool done(std::uint32_t parity) {
    std::uint32_t complete;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(complete)
        : "r"(shared_address(&bits)), "r"(parity)
        : "memory");
    return complete != 0;
  }
  __device__ __forceinline__ void wait(std::uint32_t parity) {
    while (!done(parity)) {
    }
  }
};

/// Makes initialised mbarriers visible to the copy engine; then __syncthreads().
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// Shared memory written by ordinary stores or cp.async may be read by wgmma and the copy engine after this fence, by
/// the writer before it arrives or by the reader after it waited.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// The same for device memory that ordinary stores wrote and the copy engine reads, by the reader.
__device__ __forceinline__ void fence_async_proxy_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

/// Waits until `threads` threads (a multiple of 32) of the block are here. Id 0 is __syncthreads().
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Counts towards a named barrier without waiting.
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// A word of device memory by which one thread block tells others that what it wrote before is there.
__device__ __forceinline__ std::int32_t load_acquire(const std::int32_t* word) {
  std::int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(std::int32_t* word, std::int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

/// A place in a ring of `kStages` buffers, with the parity of its current round.
template <int kStages>
struct RingPlace {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1u;
    }
  }
  /// By count <= kStages.
  __device__ __forceinline__ void advance(int count) {
    stage += count;
    if (stage >= kStages) {
      stage -= kStages;
      parity ^= 1u;
    }
  }
};

/// Registers of each thread of the calling warpgroup, from here on. The kernel needs __launch_bounds__(threads, 1).
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace moba::cuda
