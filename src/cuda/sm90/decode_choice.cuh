// The choice of a decode step, in device code: a cluster of CTAs shares the blocks of one unit, a (row, key/value head,
// up to 16 query heads) where each head has a list of its own, a (row, list) where heads share one. Each CTA scores its
// share, by the tensor cores, and keeps the exact best of it; then it reads what the others kept.
#pragma once

#include <cstdint>

#include "cuda/decode.h"
#include "cuda/device/cluster.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/quad.cuh"
#include "cuda/inverse.h"
#include "cuda/sm90/best_keys.cuh"
#include "cuda/sm90/paged_rows.cuh"

namespace moba::cuda {

inline constexpr int kWarpBlocks = 16;  // that a warp scores at a time
inline constexpr int kChunk = 1024;     // scores of a list that are kept before the best are taken
inline constexpr int kFewScores = 128;
inline constexpr int kKept = 64;  // room for the best of a list, at least the greatest budget
static_assert(kKept > kMaxBudget);

/// The best of a CTA's share: of each list of the unit, in ascending order of blocks.
struct Kept {
  std::uint32_t keys[kHeadTile][kKept];
  std::int32_t blocks[kHeadTile][kKept];
  std::int32_t count[kHeadTile];
};

/// Which query heads and lists a unit has.
struct Unit {
  int first_list, lists;
  int first_head, heads;  // of each of its key/value heads; the first is counted from the key/value head's own
  int first_kv, kvs;
  bool shared;  // one list, scored by the sum over heads
};

__device__ __forceinline__ Unit unit_of(const DecodeProblem& problem, int index) {
  const int group = problem.heads / problem.kv_heads;
  if (problem.lists == problem.heads) {
    const int tiles = (group + kHeadTile - 1) / kHeadTile;
    const int kv = index / tiles, first = index % tiles * kHeadTile, heads = min(kHeadTile, group - first);
    return {kv * group + first, heads, first, heads, kv, 1, false};
  }
  const int kvs = problem.kv_heads / problem.lists;
  return {index, 1, 0, group, index * kvs, kvs, true};
}

/// What a row can choose from, as src/past_blocks.h: forced sinks, candidates [sinks, end), and the block before the
/// own one where it is forced.
struct Candidates {
  int sinks, end, past;
  int wanted;  // of the candidates

  __device__ __forceinline__ Candidates(const DecodeProblem& problem, int length) {
    past = length > 0 ? (length - 1) / problem.block_size : 0;
    sinks = min(problem.sinks, past);
    end = past - (problem.force_previous && past > sinks ? 1 : 0);
    wanted = max(0, problem.budget - min(problem.sinks, problem.budget) - (problem.force_previous ? 1 : 0));
  }
};

/// keys[list][i] for the blocks first + i, i < count: a warp takes 16 at a time, and fetches the next meanwhile.
template <class T, int kDim, int kWarps>
__device__ __forceinline__ void score_blocks(const DecodeProblem& problem, const PagedRows& rows, const Unit& unit,
                                             int row, int first, int count, std::uint32_t* keys) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int pages_per_block = problem.block_size / rows.page_size;
  const int group = problem.heads / problem.kv_heads;
  const T* q = static_cast<const T*>(problem.q) + row * problem.q_row_stride;
  const T* representatives = static_cast<const T*>(problem.representatives) + 8 * t;
  constexpr int kStep = kWarps * kWarpBlocks;
  // Lane g looks at the blocks base + g and base + g + 8.
  const auto page_of = [&](int base, int i) {
    return rows.page((first + min(base + g + 8 * i, count - 1) + 1) * pages_per_block - 1);
  };
  const auto fetch = [&](uint4(&to)[kDim / 32], std::int64_t page, int kv) {
    const T* from = representatives + page * problem.r_row_stride + kv * problem.r_head_stride;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) to[j] = *reinterpret_cast<const uint4*>(from + 32 * j);
  };
  int base = warp * kWarpBlocks;
  if (base >= count) return;
  std::int64_t pages[2] = {page_of(base, 0), page_of(base, 1)};
  std::int64_t next_pages[2] = {page_of(base + kStep, 0), page_of(base + kStep, 1)};
  uint4 low[kDim / 32], high[kDim / 32];
  fetch(low, pages[0], unit.first_kv);
  fetch(high, pages[1], unit.first_kv);
  for (; base < count; base += kStep) {
    float sums[2] = {0.0f, 0.0f};  // of blocks g and g + 8, where heads share the list: this lane's columns
    for (int kv = unit.first_kv; kv < unit.first_kv + unit.kvs; ++kv) {
      uint4 next_low[kDim / 32], next_high[kDim / 32];
      const bool last = kv + 1 == unit.first_kv + unit.kvs;
      fetch(next_low, last ? next_pages[0] : pages[0], last ? unit.first_kv : kv + 1);
      fetch(next_high, last ? next_pages[1] : pages[1], last ? unit.first_kv : kv + 1);
      for (int head = 0; head < unit.heads; head += 8) {
        uint4 query[kDim / 32];
        const bool valid = head + g < unit.heads;
        const T* at = q + (kv * group + unit.first_head + head + g) * problem.q_head_stride + 8 * t;
#pragma unroll
        for (int j = 0; j < kDim / 32; ++j) {
          query[j] = valid ? *reinterpret_cast<const uint4*>(at + 32 * j) : uint4{0, 0, 0, 0};
        }
        float products[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        row_products<T, kDim>(products, low, high, query);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int list = head + 2 * t + c;
          if (list >= unit.heads) continue;
          if (unit.shared) {
            sums[0] += products[c];
            sums[1] += products[2 + c];
          } else {
            if (base + g < count) keys[list * kChunk + base + g] = key_of(products[c]);
            if (base + g + 8 < count) keys[list * kChunk + base + g + 8] = key_of(products[2 + c]);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) low[j] = next_low[j], high[j] = next_high[j];
    }
    if (unit.shared) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float sum = quad_sum(sums[i]);
        if (t == 0 && base + g + 8 * i < count) keys[base + g + 8 * i] = key_of(sum);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      pages[i] = next_pages[i];
      next_pages[i] = page_of(base + 2 * kStep, i);
    }
  }
}

/// The best of what a list kept and of the chunk's `count` blocks from `first` on.
template <int kPerLane>
__device__ __forceinline__ void keep_of_chunk(Kept& kept, const std::uint32_t* keys, int list, int first, int count,
                                              int wanted) {
  const int held = kept.count[list];
  const auto load = [&](int i) { return i < held ? kept.keys[list][i] : keys[i - held]; };
  const auto keep = [&](int place, int i, std::uint32_t key, bool is_kept) {
    const std::int32_t block = i < held ? kept.blocks[list][i] : first + i - held;
    __syncwarp();
    if (is_kept) {
      kept.keys[list][place] = key;
      kept.blocks[list][place] = block;
    }
  };
  const int now = keep_best<kPerLane>(held + count, wanted, load, keep);
  __syncwarp();
  if ((threadIdx.x & 31) == 0) kept.count[list] = now;
  __syncwarp();
}

/// Fills `kept` from this CTA's share of the candidates. `keys` has room for kChunk scores of each list. For all
/// threads of the cluster, which it leaves synchronised.
template <class T, int kDim, int kWarps>
__device__ __forceinline__ void keep_best_of_share(const DecodeProblem& problem, const PagedRows& rows,
                                                   const Unit& unit, const Candidates& candidates, int row, int rank,
                                                   int ranks, Kept& kept, std::uint32_t* keys) {
  const int share =
      ((candidates.end - candidates.sinks + ranks - 1) / ranks + kWarpBlocks - 1) / kWarpBlocks * kWarpBlocks;
  const int begin = min(candidates.end, candidates.sinks + rank * share), end = min(candidates.end, begin + share);
  if (threadIdx.x < kHeadTile) kept.count[threadIdx.x] = 0;
  for (int first = begin; first < end && candidates.wanted > 0; first += kChunk) {
    const int count = min(kChunk, end - first);
    __syncthreads();
    score_blocks<T, kDim, kWarps>(problem, rows, unit, row, first, count, keys);
    __syncthreads();
    for (int list = threadIdx.x >> 5; list < unit.lists; list += kWarps) {
      const std::uint32_t* of_list = keys + list * kChunk;
      if (count <= kFewScores) {
        keep_of_chunk<(kFewScores + kKept) / 32>(kept, of_list, list, first, count, candidates.wanted);
      } else {
        keep_of_chunk<(kChunk + kKept) / 32>(kept, of_list, list, first, count, candidates.wanted);
      }
    }
  }
  cluster_sync();
}

/// One warp: the list of `budget` places from what all the CTAs of the cluster kept, whose blocks ascend with the rank.
/// put(place, block) takes its entries.
template <class Put>
__device__ __forceinline__ void finish_list(const Candidates& candidates, int budget, const Kept& kept, int list,
                                            int ranks, Put&& put) {
  const int lane = threadIdx.x & 31, wanted = candidates.wanted;
  int held = 0;
  if (ranks == 1) {
    held = kept.count[list];
    for (int i = lane; i < held; i += 32) put(candidates.sinks + i, kept.blocks[list][i]);
  } else if (wanted > 0) {
    const auto load = [&](int i) {
      const Kept* of = of_rank(&kept, i / wanted);
      return i % wanted < of->count[list] ? of->keys[list][i % wanted] : 0u;
    };
    const auto keep = [&](int place, int i, std::uint32_t, bool is_kept) {
      if (is_kept) put(candidates.sinks + place, of_rank(&kept, i / wanted)->blocks[list][i % wanted]);
    };
    held = ranks * wanted <= 64 ? keep_best<2>(ranks * wanted, wanted, load, keep)
                                : keep_best<kMostCluster * kKept / 32>(ranks * wanted, wanted, load, keep);
  }
  for (int block = lane; block < candidates.sinks; block += 32) put(block, block);
  held += candidates.sinks;
  if (candidates.end < candidates.past) {
    if (lane == 0) put(held, candidates.end);
    ++held;
  }
  for (int place = held + lane; place < budget; place += 32) put(place, -1);
}

}  // namespace moba::cuda
