// The union of the lists of several heads, in ascending order, with the heads that listed each block.
#pragma once

#include <cstdint>

#include "cuda/decode.h"
#include "cuda/inverse.h"
#include "moba/context.h"

namespace moba::cuda {

/// Threads of the CTA that makes one.
inline constexpr int kUnionThreads = 128;

struct BlockUnion {
  static constexpr int kMost = 1024;  // a power of two, at least 16 lists of the greatest budget
  static_assert(kMost >= kHeadTile * kMaxBudget);

  std::int32_t count;
  std::int32_t block[kMost];
  std::uint32_t heads[kMost];  // bit h: list h has the block
};

/// What is needed only while a union is made.
struct UnionEntries {
  std::uint32_t of[BlockUnion::kMost];
  std::int32_t warp_sums[kUnionThreads / 32];
};

/// An entry sorts by block, then list; blocks are below 2^27, since a block has at least 16 of fewer than 2^31 tokens.
inline constexpr int kListBits = 4;
static_assert(1 << kListBits == kHeadTile);
inline constexpr std::uint32_t kNoEntry = 0xffffffffu;

/// Makes the union of `lists` lists, `stride` apart, of `budget` places. As src/sequences.h: an entry counts where it is
/// above those that counted before it in its list and below `own`; -1 is padding; others set kSelectionOutOfRange. For
/// all threads of the CTA, which leave it synchronised.
__device__ __forceinline__ void unite_blocks(BlockUnion& result, UnionEntries& scratch, const std::int32_t* list, std::int64_t stride,
                                             int lists, int budget, int own, std::int32_t* error_word) {
  const int entries = lists * budget, thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int padded = entries <= 32 ? 32 : 1 << (32 - __clz(entries - 1));
  for (int i = thread; i < entries; i += kUnionThreads) {
    const int of = i / budget;
    result.block[i] = list[of * stride + i - of * budget];
  }
  __syncthreads();
  for (int i = thread; i < padded; i += kUnionThreads) {
    std::uint32_t entry = kNoEntry;
    if (i < entries) {
      const int of = i / budget, block = result.block[i];
      bool counts = block >= 0 && block < own;
      for (int j = of * budget; j < i && counts; ++j) counts = result.block[j] >= own || result.block[j] < block;
      if (counts) {
        entry = static_cast<std::uint32_t>(block) << kListBits | static_cast<std::uint32_t>(of);
      } else if (block != -1 && error_word != nullptr) {
        atomicOr(error_word, kSelectionOutOfRange);
      }
    }
    scratch.of[i] = entry;
  }
  __syncthreads();
  // Bitonic sort. One list ascends already, but for entries that do not count: the sort brings those to the end.
  const auto exchange = [&](int i, int size, int step) {
    const int low = i / step * step * 2 + i % step, high = low + step;
    const std::uint32_t a = scratch.of[low], b = scratch.of[high];
    if ((a > b) == ((low & size) == 0)) scratch.of[low] = b, scratch.of[high] = a;
  };
  if (padded <= 64) {
    for (int size = 2; size <= padded && warp == 0; size *= 2) {
      for (int step = size / 2; step > 0; step /= 2) {
        if (lane < padded / 2) exchange(lane, size, step);
        __syncwarp();
      }
    }
    __syncthreads();
  } else {
    for (int size = 2; size <= padded; size *= 2) {
      for (int step = size / 2; step > 0; step /= 2) {
        for (int i = thread; i < padded / 2; i += kUnionThreads) exchange(i, size, step);
        __syncthreads();
      }
    }
  }
  // Each thread has a run of neighbours; the first entry of a block brings it into the union.
  const int run = (padded + kUnionThreads - 1) / kUnionThreads;
  const auto is_first = [&](int i) {
    const std::uint32_t entry = scratch.of[i];
    return entry != kNoEntry && (i == 0 || entry >> kListBits != scratch.of[i - 1] >> kListBits);
  };
  int firsts = 0;
  for (int i = thread * run; i < min(padded, (thread + 1) * run); ++i) firsts += is_first(i);
  int before = firsts;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, before, distance);
    if (lane >= distance) before += other;
  }
  if (lane == 31) scratch.warp_sums[warp] = before;
  __syncthreads();
  before -= firsts;
  for (int w = 0; w < warp; ++w) before += scratch.warp_sums[w];
  for (int i = thread * run; i < min(padded, (thread + 1) * run); ++i) {
    if (!is_first(i)) continue;
    const std::uint32_t block = scratch.of[i] >> kListBits;
    std::uint32_t heads = 0;
    for (int j = i; j < padded && scratch.of[j] >> kListBits == block; ++j) {
      heads |= 1u << (scratch.of[j] & ((1u << kListBits) - 1u));
    }
    result.block[before] = static_cast<std::int32_t>(block);
    result.heads[before] = heads;
    ++before;
  }
  if (thread == kUnionThreads - 1) result.count = before;
  __syncthreads();
}

}  // namespace moba::cuda
