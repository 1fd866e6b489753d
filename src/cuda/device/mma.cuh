// Products of one warp on the tensor cores, with operands in registers: 16 x 8 results, 16 summed elements.
//
// Lane l, with g = l / 4 and t = l % 4, holds of A (16 x 16) the pairs (row g, columns 2t), (g + 8, 2t), (g, 2t + 8),
// (g + 8, 2t + 8); of B (16 x 8) the pairs (rows 2t, column g), (2t + 8, g); of the result (g, 2t), (g, 2t + 1),
// (g + 8, 2t), (g + 8, 2t + 1).
//
// Which element of a row is "summed element i" is free as long as A and B agree. So a lane may fetch 16 bytes of a row,
// elements [32j + 8t, 32j + 8t + 8), and use them as its pairs of two products: no exchange between lanes.
#pragma once

#include <cstdint>

#include "cuda/device/element.cuh"

namespace moba::cuda {

template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                            std::uint32_t a3, std::uint32_t b0, std::uint32_t b1);

template <>
__device__ __forceinline__ void mma_16x8x16<__nv_bfloat16>(float (&d)[4], std::uint32_t a0, std::uint32_t a1,
                                                           std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                                           std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_16x8x16<__half>(float (&d)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                                    std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// d += rows of A (g and g + 8) times rows of B^T (g), over kDim elements, where each lane holds its 16-byte chunks.
template <class T, int kDim>
__device__ __forceinline__ void row_products(float (&d)[4], const uint4 (&a_low)[kDim / 32],
                                             const uint4 (&a_high)[kDim / 32], const uint4 (&b)[kDim / 32]) {
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    mma_16x8x16<T>(d, a_low[j].x, a_high[j].x, a_low[j].y, a_high[j].y, b[j].x, b[j].y);
    mma_16x8x16<T>(d, a_low[j].z, a_high[j].z, a_low[j].w, a_high[j].w, b[j].z, b[j].w);
  }
}

}  // namespace moba::cuda
