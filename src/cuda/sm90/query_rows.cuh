// Query rows of score_select on their way into registers, as the operand A of the products: 16 rows of each warp.
#pragma once

#include <cstdint>

#include "cuda/device/copy.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/launch.h"
#include "cuda/sm90/row_tile.cuh"

namespace moba::cuda {

inline constexpr int kWarpRows = 16;

/// Brings the query rows of an item into the L2 cache. The copying warp is a ring ahead of the warpgroups, which then
/// wait for the cache and not for memory.
template <class T, int kDim>
__device__ __forceinline__ void prefetch_rows(const SelectProblem& problem, const RowTile& tile, int first_head,
                                              int heads) {
  constexpr int kLines = kDim * 2 / 128;  // of a row
  const int lane = threadIdx.x % 32, count = (tile.end_row - tile.first_row) * kLines;
  for (int head = first_head; head < first_head + heads; ++head) {
    const T* base =
        static_cast<const T*>(problem.q) + tile.first_row * problem.q_row_stride + head * problem.q_head_stride;
    for (int line = lane; line < count; line += 32) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(base + line / kLines * problem.q_row_stride + line % kLines * 64));
    }
  }
}

/// The two rows of each thread, straight from memory; zeros for rows behind the end.
template <class T, int kDim>
__device__ __forceinline__ void load_rows(std::uint32_t (&words)[kDim / 4], const SelectProblem& problem,
                                          std::int64_t row, std::int64_t end_row, int head) {
  const T* base = static_cast<const T*>(problem.q) + row * problem.q_row_stride + head * problem.q_head_stride +
                  2 * (threadIdx.x % 4);
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        words[4 * step + 2 * half + i] = row + 8 * i < end_row
                                             ? __ldg(reinterpret_cast<const std::uint32_t*>(
                                                   base + 8 * i * problem.q_row_stride + 16 * step + 8 * half))
                                             : 0u;
      }
    }
  }
}

/// Asks for a warp's rows [first_row, first_row + 16) in its own 16 * kDim elements of shared memory, 16-byte pieces
/// swizzled; zeros behind the end. Another warp-wide step may have read that memory before.
template <class T, int kDim>
__device__ __forceinline__ void fetch_rows(std::uint32_t shared, const SelectProblem& problem, std::int32_t first_row,
                                           std::int32_t end_row, int head) {
  constexpr int kChunks = kDim / 8, kRowsAtOnce = 32 / kChunks;
  const int lane = threadIdx.x % 32, chunk = lane % kChunks, first = lane / kChunks;
  const T* from = static_cast<const T*>(problem.q) + (first_row + first) * problem.q_row_stride +
                  head * problem.q_head_stride + chunk * 8;
  __syncwarp();
#pragma unroll
  for (int at = 0; at < kWarpRows; at += kRowsAtOnce) {
    const int row = at + first;
    copy_16_async(shared + row * kDim * 2 + ((chunk ^ (row & 7)) << 4), from, first_row + row < end_row);
    from += kRowsAtOnce * problem.q_row_stride;
  }
  copy_async_commit();
}

/// Waits for the rows and brings them into registers, as load_rows() would.
template <int kDim>
__device__ __forceinline__ void take_rows(std::uint32_t (&words)[kDim / 4], std::uint32_t shared) {
  copy_async_wait<0>();
  __syncwarp();
  const int lane = threadIdx.x % 32, row = lane % 16, half = lane / 16;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    load_matrices(words + 4 * step, shared + row * kDim * 2 + (((2 * step + half) ^ (row & 7)) << 4));
  }
  __syncwarp();  // all lanes have read: the memory may be used again
}

}  // namespace moba::cuda
