// Copies from device memory into swizzled tiles of shared memory.
//
// A tile of R rows and D columns of 2-byte elements lies in shared memory as D / 64 panels, one after the other; a
// panel is R rows of 128 bytes, and the 16-byte chunk c of row r is at chunk (c ^ r % 8) of the row ("128-byte
// swizzle"). The panel must start at a multiple of kPanelAlignment. This is what the copy engine writes with
// CU_TENSOR_MAP_SWIZZLE_128B, and what the descriptors of wgmma.cuh read.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/device/barrier.cuh"

namespace moba::cuda {

inline constexpr int kPanelColumns = 64;
inline constexpr int kPanelRowBytes = 128;
inline constexpr int kPanelAlignment = 1024;

/// Where panels may begin in a kernel's dynamic shared memory, which must have kPanelAlignment bytes to spare.
template <class Storage>
__device__ __forceinline__ Storage& first_panel(void* dynamic) {
  const std::uint32_t over = shared_address(dynamic) % kPanelAlignment;
  return *reinterpret_cast<Storage*>(static_cast<char*>(dynamic) + (kPanelAlignment - over) % kPanelAlignment);
}

/// Bytes from the start of a tile of `rows` rows to the 16-byte chunk (of 8 elements) of a row.
__device__ __forceinline__ int swizzled_offset(int rows, int row, int chunk) {
  return (chunk >> 3) * rows * kPanelRowBytes + row * kPanelRowBytes + (((chunk & 7) ^ (row & 7)) << 4);
}

/// 16 bytes, past the L1 cache; zeros where `valid` is false (nothing is read then).
__device__ __forceinline__ void copy_16_async(std::uint32_t shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

/// 16 bytes of shared memory.
__device__ __forceinline__ uint4 load_words(std::uint32_t shared) {
  uint4 words;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(shared)
               : "memory");
  return words;
}

/// Where `store`: 16 bytes to device memory that are read once, by another kernel, so that they need not stay in the L2
/// cache. Without a branch.
__device__ __forceinline__ void store_once_if(bool store, void* global, const uint4& words) {
  asm volatile(
      "{\n"
      ".reg .pred store;\n"
      "setp.ne.s32 store, %5, 0;\n"
      "@store st.global.cs.v4.b32 [%0], {%1, %2, %3, %4};\n"
      "}\n" ::"l"(__cvta_generic_to_global(global)),
      "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w), "r"(static_cast<int>(store))
      : "memory");
}

__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Into the L2 cache: the line of 128 bytes at an address, or `bytes` (a multiple of 16) from an aligned one.
__device__ __forceinline__ void prefetch_line(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global) : "memory");
}
__device__ __forceinline__ void prefetch_bytes(const void* global, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

/// The L2 cache's policy for what shall not take the place of other data there.
__device__ __forceinline__ std::uint64_t evict_first() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// `bytes` (a multiple of 16) from shared to device memory by the copy engine, past what L2 would keep; the calling
/// thread's stores are one group until it waits for them.
__device__ __forceinline__ void store_bulk(void* global, std::uint32_t shared, std::uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;\n"
      "cp.async.bulk.commit_group;" ::"l"(__cvta_generic_to_global(global)),
      "r"(shared), "r"(bytes), "l"(evict_first())
      : "memory");
}

/// `bytes` (a multiple of 16) from device to shared memory by the copy engine; they count on `barrier`.
__device__ __forceinline__ void load_bulk(void* shared, const void* global, std::uint32_t bytes, Barrier* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(&barrier->bits))
               : "memory");
}

/// The same for what is read only once: it shall not take the place of other data in L2.
__device__ __forceinline__ void load_bulk_once(void* shared, const void* global, std::uint32_t bytes,
                                               Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(&barrier->bits)), "l"(evict_first())
      : "memory");
}

/// The same as store_bulk(), added to the fp32 numbers that are there.
__device__ __forceinline__ void add_bulk(float* global, std::uint32_t shared, std::uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\n"
      "cp.async.bulk.commit_group;" ::"l"(__cvta_generic_to_global(global)),
      "r"(shared), "r"(bytes)
      : "memory");
}

/// Waits until the thread's bulk stores have read shared memory, or until they are complete.
__device__ __forceinline__ void wait_bulk_reads() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ __forceinline__ void wait_bulk_stores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<std::uint64_t>(map)) : "memory");
}

/// The copy engine brings the map's box at (column, row, head) to `shared`; its bytes count on `barrier`. Rows outside
/// of the tensor become zeros (and count). Row and head are in elements of the map, see tensor_map.h.
__device__ __forceinline__ void copy_box(void* shared, const CUtensorMap* map, Barrier* barrier, int column, int row,
                                         int head) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(shared_address(shared)),
      "l"(reinterpret_cast<std::uint64_t>(map)), "r"(shared_address(&barrier->bits)), "r"(column), "r"(row), "r"(head)
      : "memory");
}

/// A tile of kRows rows (the map's box) and kColumns columns; announce kRows * kColumns * 2 bytes on the barrier.
template <int kRows, int kColumns>
__device__ __forceinline__ void copy_tile(void* shared, const CUtensorMap* map, Barrier* barrier, int row, int head) {
#pragma unroll
  for (int panel = 0; panel < kColumns / kPanelColumns; ++panel) {
    copy_box(static_cast<char*>(shared) + panel * kRows * kPanelRowBytes, map, barrier, panel * kPanelColumns, row,
             head);
  }
}

}  // namespace moba::cuda
