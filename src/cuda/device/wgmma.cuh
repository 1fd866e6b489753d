// Products of swizzled tiles on the tensor cores of Hopper: one warpgroup, 64 rows, fp32 accumulators.
//
// The accumulator of 64 x N: thread t of the warpgroup (warp w, lane l) holds d[4 * j + 2 * i + c] = element of row
// 16 * w + 8 * i + l / 4 and column 8 * j + 2 * (l % 4) + c.
#pragma once

#include <cstdint>
#include <cute/arch/mma_sm90_desc.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/element.cuh"

namespace moba::cuda {

using cute::SM90::GMMA::Major;

/// The instruction for T and N. kA, kB: Major::K where the summed axis is the contiguous one, Major::MN where not.
template <class T, int kN>
struct WgmmaOf;

template <>
struct WgmmaOf<__nv_bfloat16, 64> {
  template <Major kA, Major kB>
  using SS = cute::SM90::GMMA::MMA_64x64x16_F32BF16BF16_SS<kA, kB>;
  template <Major kB>
  using RS = cute::SM90::GMMA::MMA_64x64x16_F32BF16BF16_RS<Major::K, kB>;
};
template <>
struct WgmmaOf<__nv_bfloat16, 128> {
  template <Major kA, Major kB>
  using SS = cute::SM90::GMMA::MMA_64x128x16_F32BF16BF16_SS<kA, kB>;
  template <Major kB>
  using RS = cute::SM90::GMMA::MMA_64x128x16_F32BF16BF16_RS<Major::K, kB>;
};
template <>
struct WgmmaOf<__half, 64> {
  template <Major kA, Major kB>
  using SS = cute::SM90::GMMA::MMA_64x64x16_F32F16F16_SS<kA, kB>;
  template <Major kB>
  using RS = cute::SM90::GMMA::MMA_64x64x16_F32F16F16_RS<Major::K, kB>;
};
template <>
struct WgmmaOf<__half, 128> {
  template <Major kA, Major kB>
  using SS = cute::SM90::GMMA::MMA_64x128x16_F32F16F16_SS<kA, kB>;
  template <Major kB>
  using RS = cute::SM90::GMMA::MMA_64x128x16_F32F16F16_RS<Major::K, kB>;
};

/// Where a tile (or a row range of one) lies: `rows` is the row count of the whole tile, which sets the distance of its
/// panels. `first_row` must be a multiple of 8.
/// kK: the summed axis runs along the columns, rows are the result's. kMN: the summed axis runs along the rows.
template <Major kMajor>
__device__ __forceinline__ std::uint64_t tile_descriptor(const void* tile, int rows, int first_row = 0) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kEightRows = std::uint64_t{8 * kPanelRowBytes / 16} << 32;
  const std::uint64_t start = (shared_address(tile) + first_row * kPanelRowBytes) >> 4;
  const std::uint64_t panel = kMajor == Major::MN ? static_cast<std::uint64_t>(rows * kPanelRowBytes / 16) : 1;
  return kSwizzle128 | kEightRows | panel << 16 | start;
}

/// The descriptor moved to step `step` of 16 along the summed axis.
template <Major kMajor>
__device__ __forceinline__ std::uint64_t at_step(std::uint64_t descriptor, int rows, int step) {
  const int bytes =
      kMajor == Major::K ? (step >> 2) * rows * kPanelRowBytes + (step & 3) * 32 : step * 16 * kPanelRowBytes;
  // Within the lower half: shared memory ends long before 2^18 bytes.
  const std::uint32_t low = static_cast<std::uint32_t>(descriptor) + static_cast<std::uint32_t>(bytes >> 4);
  return (descriptor & ~std::uint64_t{0xffffffffu}) | low;
}

/// A descriptor that depends on what was read from memory, made known to the compiler as the same in all lanes, so
/// that its steps are counted in uniform registers.
__device__ __forceinline__ std::uint64_t uniform_descriptor(std::uint64_t descriptor) {
  const std::uint32_t low = __shfl_sync(0xffffffffu, static_cast<std::uint32_t>(descriptor), 0);
  return (descriptor & ~std::uint64_t{0xffffffffu}) | low;
}

/// Before the first wgmma, and before one that uses registers or accumulators that other code wrote.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most kPending groups of the warpgroup are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// Keeps the compiler from moving uses of registers across asynchronous products.
template <int kCount>
__device__ __forceinline__ void hold_registers(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void hold_registers(std::uint32_t (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

/// One step of 16: d[64, N] = a[64, 16] · b[N, 16]^T (+ d where `accumulate`), both operands in shared memory.
template <class T, int kN, Major kA, Major kB>
__device__ __forceinline__ void wgmma_step(float (&d)[kN / 2], std::uint64_t a, std::uint64_t b, bool accumulate) {
  [&]<std::size_t... kIndex>(std::index_sequence<kIndex...>) {
    WgmmaOf<T, kN>::template SS<kA, kB>::fma(
        a, b, d[kIndex]..., accumulate ? cute::SM90::GMMA::ScaleOut::One : cute::SM90::GMMA::ScaleOut::Zero);
  }
  (std::make_index_sequence<kN / 2>{});
}

/// The same with a in registers: four words, see pack_rows().
template <class T, int kN, Major kB>
__device__ __forceinline__ void wgmma_step(float (&d)[kN / 2], const std::uint32_t* a, std::uint64_t b,
                                           bool accumulate) {
  [&]<std::size_t... kIndex>(std::index_sequence<kIndex...>) {
    WgmmaOf<T, kN>::template RS<kB>::fma(
        a[0], a[1], a[2], a[3], b, d[kIndex]...,
        accumulate ? cute::SM90::GMMA::ScaleOut::One : cute::SM90::GMMA::ScaleOut::Zero);
  }
  (std::make_index_sequence<kN / 2>{});
}

/// d = A · B over kSteps * 16 of the summed axis. `a_rows`, `b_rows`: rows of the tiles that hold the operands.
template <class T, int kN, int kSteps, Major kA, Major kB>
__device__ __forceinline__ void wgmma_tiles(float (&d)[kN / 2], std::uint64_t a, int a_rows, std::uint64_t b,
                                            int b_rows, bool accumulate) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    wgmma_step<T, kN, kA, kB>(d, at_step<kA>(a, a_rows, step), at_step<kB>(b, b_rows, step), accumulate || step > 0);
  }
}

/// The same with A in registers: kSteps groups of four words.
template <class T, int kN, int kSteps, Major kB>
__device__ __forceinline__ void wgmma_tiles(float (&d)[kN / 2], const std::uint32_t (&a)[4 * kSteps], std::uint64_t b,
                                            int b_rows, bool accumulate) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    wgmma_step<T, kN, kB>(d, a + 4 * step, at_step<kB>(b, b_rows, step), accumulate || step > 0);
  }
}

/// Four matrices of 8 x 8 elements from shared memory, a row of 16 bytes at each lane's address: with rows l % 16 and
/// the chunk of columns l / 16 of lane l, the register operand of one step for the 16 rows of a warp.
__device__ __forceinline__ void load_matrices(std::uint32_t* a, std::uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared)
               : "memory");
}

/// The way back: four words of pack_rows(), of 16 columns, to rows and chunks at the lanes' addresses.
__device__ __forceinline__ void store_matrices(std::uint32_t shared, const std::uint32_t* a) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(a[0]), "r"(a[1]),
               "r"(a[2]), "r"(a[3])
               : "memory");
}

/// An accumulator [64, N], rounded to T, as the register operand A [64, N] of the next product.
template <class T, int kN>
__device__ __forceinline__ void pack_rows(std::uint32_t (&a)[kN / 4], const float (&d)[kN / 2]) {
#pragma unroll
  for (int i = 0; i < kN / 4; ++i) a[i] = pack<T>(d[2 * i], d[2 * i + 1]);
}

}  // namespace moba::cuda
