// The union of the lists of several heads, with the heads that listed each block.
#pragma once

#include <cstdint>

#include "cuda/decode.h"
#include "cuda/inverse.h"
#include "moba/context.h"

namespace moba::cuda {

inline constexpr int kMostUnionWarps = 8;

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
  std::int32_t warp_sums[kMostUnionWarps];
};

/// An entry sorts by block, then list; blocks are below 2^27, since a block has at least 16 of fewer than 2^31 tokens.
inline constexpr int kListBits = 4;
static_assert(1 << kListBits == kHeadTile);
inline constexpr std::uint32_t kNoEntry = 0xffffffffu;

/// Makes the union of `lists` lists of `budget` places that lie in result.block, one after the other, for CTAs of
/// kWarps warps. As src/sequences.h: an entry counts where it is above those that counted before it in its list and
/// below `own`; -1 is padding; others set kSelectionOutOfRange. For all threads of the CTA, which have synchronised
/// after the lists were written, and which it leaves synchronised.
template <int kWarps>
__device__ __forceinline__ void unite_blocks(BlockUnion& result, UnionEntries& scratch, int lists, int budget, int own,
                                             std::int32_t* error_word) {
  constexpr int kThreads = kWarps * 32;
  const int entries = lists * budget, thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const auto counts = [&](int i) {
    const int block = result.block[i];
    bool above = block >= 0 && block < own;
    for (int j = i / budget * budget; j < i && above; ++j) above = result.block[j] >= own || result.block[j] < block;
    if (!above && block != -1 && error_word != nullptr) atomicOr(error_word, kSelectionOutOfRange);
    return above;
  };
  if (entries <= 32) {
    // One warp, and in any order that is always the same: by the first list that has the block.
    if (warp == 0) {
      const bool valid = lane < entries && counts(lane);
      const int block = valid ? result.block[lane] : -1 - lane;
      const unsigned same = __match_any_sync(0xffffffffu, block);
      const unsigned firsts = __ballot_sync(0xffffffffu, valid && __ffs(static_cast<int>(same)) - 1 == lane);
      std::uint32_t heads = 0;
      for (int list = 0; list < lists; ++list) {
        const unsigned places = (budget == 32 ? 0xffffffffu : (1u << budget) - 1u) << (list * budget);
        heads |= (same & places) != 0 ? 1u << list : 0u;
      }
      __syncwarp();
      if (firsts >> lane & 1) {
        const int place = __popc(firsts & ((1u << lane) - 1u));
        result.block[place] = block;
        result.heads[place] = heads;
      }
      if (lane == 0) result.count = __popc(firsts);
    }
    __syncthreads();
    return;
  }
  const int padded = 1 << (32 - __clz(entries - 1));
  for (int i = thread; i < padded; i += kThreads) {
    scratch.of[i] = i < entries && counts(i) ? static_cast<std::uint32_t>(result.block[i]) << kListBits |
                                                   static_cast<std::uint32_t>(i / budget)
                                             : kNoEntry;
  }
  __syncthreads();
  // Bitonic sort: what does not count goes to the end.
  for (int size = 2; size <= padded; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      for (int i = thread; i < padded / 2; i += kThreads) {
        const int low = i / step * step * 2 + i % step, high = low + step;
        const std::uint32_t a = scratch.of[low], b = scratch.of[high];
        if ((a > b) == ((low & size) == 0)) scratch.of[low] = b, scratch.of[high] = a;
      }
      __syncthreads();
    }
  }
  // Each thread has a run of neighbours; the first entry of a block brings it into the union.
  const int run = (padded + kThreads - 1) / kThreads, begin = thread * run, end = min(padded, begin + run);
  const auto is_first = [&](int i) {
    const std::uint32_t entry = scratch.of[i];
    return entry != kNoEntry && (i == 0 || entry >> kListBits != scratch.of[i - 1] >> kListBits);
  };
  int firsts = 0;
  for (int i = begin; i < end; ++i) firsts += is_first(i);
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
  for (int i = begin; i < end; ++i) {
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
  if (thread == kThreads - 1) result.count = before;
  __syncthreads();
}

}  // namespace moba::cuda
