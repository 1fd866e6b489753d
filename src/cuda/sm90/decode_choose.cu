// The choice of a decode step: the group's queries against the representatives of closed past blocks, and the exact best
// of each list. A cluster of CTAs shares the blocks of one unit: a (row, key/value head, up to 16 query heads) where
// each head has a list of its own, a (row, list) where heads share one. Each CTA keeps the best of its share; then they
// read each other's.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/cuda_check.h"
#include "cuda/decode.h"
#include "cuda/device/cluster.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/quad.cuh"
#include "cuda/instances.h"
#include "cuda/inverse.h"
#include "cuda/sm90/best_keys.cuh"
#include "cuda/sm90/paged_rows.cuh"

namespace moba::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kWarpBlocks = 16;                   // a warp scores at a time
constexpr int kPassBlocks = kWarps * kWarpBlocks;
constexpr int kChunk = 1024;                      // scores that are kept before the best are taken
constexpr int kFew = 128;
constexpr int kKept = 64;                         // room for the best of a list, at least the greatest budget
static_assert(kKept > kMaxBudget && kChunk % kPassBlocks == 0);

/// The best so far of the lists of a unit, each in ascending order of blocks.
struct Kept {
  std::uint32_t keys[kHeadTile][kKept];
  std::int32_t blocks[kHeadTile][kKept];
  std::int32_t count[kHeadTile];
};

/// Which query heads and lists a CTA works on.
struct Unit {
  int first_list, lists;
  int first_head, heads;  // of each key/value head: the first counted from the key/value head's
  int first_kv, kvs;
  bool shared;            // one list, scored by the sum over heads
};

__device__ __forceinline__ Unit unit_of(const ChooseProblem& problem, int index) {
  const int group = problem.heads / problem.kv_heads;
  if (problem.lists == problem.heads) {
    const int tiles = (group + kHeadTile - 1) / kHeadTile;
    const int kv = index / tiles, first = index % tiles * kHeadTile, heads = min(kHeadTile, group - first);
    return {kv * group + first, heads, first, heads, kv, 1, false};
  }
  const int kvs = problem.kv_heads / problem.lists;
  return {index, 1, 0, group, index * kvs, kvs, true};
}

/// keys[list][i] for the blocks first + i, i < count, of this CTA: a warp takes 16 at a time.
template <class T, int kDim>
__device__ __forceinline__ void score(const ChooseProblem& problem, const PagedRows& rows, const Unit& unit, int row,
                                      int first, int count, std::uint32_t* keys) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int pages_per_block = problem.block_size / rows.page_size;
  const int group = problem.heads / problem.kv_heads;
  const T* q = static_cast<const T*>(problem.q) + row * problem.q_row_stride;
  for (int base = warp * kWarpBlocks; base < count; base += kPassBlocks) {
    const T* representative[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int block = first + min(base + g + 8 * i, count - 1);
      representative[i] = static_cast<const T*>(problem.representatives) +
                          rows.page((block + 1) * pages_per_block - 1) * problem.r_row_stride + 8 * t;
    }
    float sums[2] = {0.0f, 0.0f};  // of blocks g and g + 8, where heads share the list: this lane's columns
    for (int kv = unit.first_kv; kv < unit.first_kv + unit.kvs; ++kv) {
      uint4 low[kDim / 32], high[kDim / 32];
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) {
        low[j] = *reinterpret_cast<const uint4*>(representative[0] + kv * problem.r_head_stride + 32 * j);
        high[j] = *reinterpret_cast<const uint4*>(representative[1] + kv * problem.r_head_stride + 32 * j);
      }
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
    }
    if (unit.shared) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float sum = quad_sum(sums[i]);
        if (t == 0 && base + g + 8 * i < count) keys[base + g + 8 * i] = key_of(sum);
      }
    }
  }
}

/// The best of what a list kept and of the chunk's `count` blocks from `first` on.
template <int kPerLane>
__device__ __forceinline__ void keep_of_chunk(Kept& kept, const std::uint32_t* keys, int list, int first, int count,
                                              int wanted) {
  const int held = kept.count[list];
  std::int32_t block = 0;
  const auto load = [&](int i) { return i < held ? kept.keys[list][i] : keys[i - held]; };
  const auto keep = [&](int place, int i, std::uint32_t key, bool is_kept) {
    block = i < held ? kept.blocks[list][i] : first + i - held;
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

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads) decode_choose_kernel(const __grid_constant__ ChooseProblem problem) {
  extern __shared__ std::uint32_t keys[];  // [lists of the unit][kChunk]
  __shared__ Kept kept;
  let_next_kernel_start();
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int row = blockIdx.z, rank = blockIdx.x, ranks = gridDim.x;
  const Unit unit = unit_of(problem, blockIdx.y);
  const PagedRows rows(problem.batch, row);
  // As src/past_blocks.h: forced sinks, candidates [sinks, end), and the block before the own one where it is forced.
  const int past = rows.length > 0 ? (rows.length - 1) / problem.block_size : 0;
  const int sinks = min(problem.sinks, past);
  const int end = past - (problem.force_previous && past > sinks ? 1 : 0);
  const int wanted = max(0, problem.budget - min(problem.sinks, problem.budget) - (problem.force_previous ? 1 : 0));
  const int share = ((end - sinks + ranks - 1) / ranks + kWarpBlocks - 1) / kWarpBlocks * kWarpBlocks;
  const int begin_of_mine = min(end, sinks + rank * share), end_of_mine = min(end, begin_of_mine + share);

  if (threadIdx.x < kHeadTile) kept.count[threadIdx.x] = 0;
  for (int first = begin_of_mine; first < end_of_mine && wanted > 0; first += kChunk) {
    const int count = min(kChunk, end_of_mine - first);
    __syncthreads();
    score<T, kDim>(problem, rows, unit, row, first, count, keys);
    __syncthreads();
    for (int list = warp; list < unit.lists; list += kWarps) {
      const std::uint32_t* of_list = keys + list * kChunk;
      if (count <= kFew) {
        keep_of_chunk<(kFew + kKept) / 32>(kept, of_list, list, first, count, wanted);
      } else {
        keep_of_chunk<(kChunk + kKept) / 32>(kept, of_list, list, first, count, wanted);
      }
    }
  }
  cluster_sync();

  // List l is finished by CTA l % ranks: a warp reads what all the CTAs kept, whose blocks ascend with the rank.
  for (int list = rank + warp * ranks; list < unit.lists; list += ranks * kWarps) {
    std::int32_t* out = problem.blocks + row * problem.row_stride + (unit.first_list + list) * problem.list_stride;
    const auto load = [&](int i) {
      const int of = i / wanted, place = i - of * wanted;
      const Kept* remote = of_rank(&kept, of);
      return place < remote->count[list] ? remote->keys[list][place] : 0u;
    };
    const auto keep = [&](int place, int i, std::uint32_t, bool is_kept) {
      if (!is_kept) return;
      const int of = i / wanted;
      out[sinks + place] = of_rank(&kept, of)->blocks[list][i - of * wanted];
    };
    int held = wanted == 0 ? 0 : keep_best<kMostCluster * kKept / 32>(ranks * wanted, wanted, load, keep);
    for (int block = lane; block < sinks; block += 32) out[block] = block;
    held += sinks;
    if (end < past) {
      if (lane == 0) out[held] = end;
      ++held;
    }
    for (int place = held + lane; place < problem.budget; place += 32) out[place] = -1;
  }
  cluster_sync();  // nobody leaves while its shared memory is read
}

}  // namespace

int cluster_for(std::int64_t units, int multiprocessors, int resident) {
  int cluster = 1;
  while (cluster < kMostCluster && units * cluster < std::int64_t{multiprocessors} * resident) cluster *= 2;
  return cluster;
}

void launch_decode_choose(cudaStream_t stream, DType dtype, std::int64_t head_dim, const ChooseProblem& problem) {
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    const int group = problem.heads / problem.kv_heads;
    const bool per_head = problem.lists == problem.heads;
    const int units = per_head ? problem.kv_heads * ((group + kHeadTile - 1) / kHeadTile) : problem.lists;
    const int lists = per_head ? std::min(group, kHeadTile) : 1;
    const std::size_t bytes = static_cast<std::size_t>(lists) * kChunk * sizeof(std::uint32_t);
    const auto kernel = decode_choose_kernel<T, kDim>;
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
               "cudaFuncSetAttribute");
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(problem.cluster), static_cast<unsigned>(units),
                          static_cast<unsigned>(problem.batch.count));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(problem.cluster), 1, 1};
    config.attrs = &cluster;
    config.numAttrs = 1;
    check_cuda(cudaLaunchKernelEx(&config, kernel, problem), "decode_choose");
  });
}

}  // namespace moba::cuda
