// Attention of a decode step, with the choice before it where the heads that attend together choose together. A unit is
// a (row, key/value head, up to 16 of its query heads); a cluster of CTAs, and the warps of each, share the 16-key
// tiles of the unit's blocks: the union of what its heads chose, each block read once, and the own block. A warp goes
// through its tiles by itself: keys and values come in 16-byte pieces into a ring of shared memory where every lane
// finds its own operands of the tensor cores, so lanes exchange nothing and wait for nobody. Parts are merged in the
// order of the tiles, over warps, then over CTAs through each other's shared memory.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/cuda_check.h"
#include "cuda/decode.h"
#include "cuda/device/cluster.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/quad.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/instances.h"
#include "cuda/inverse.h"
#include "cuda/sm90/block_union.cuh"
#include "cuda/sm90/decode_choice.cuh"
#include "cuda/sm90/paged_rows.cuh"

namespace moba::cuda {
namespace {

constexpr int kKeys = 16;             // of a tile
constexpr int kPieceBytes = 16 * 32;  // one 16-byte piece of each lane

/// Sizes of an instance. kRows: query heads of a unit, 8 or 16.
template <int kDim>
struct Tile {
  static constexpr int kKeyPieces = 2 * kDim / 32;    // of each lane: rows g and g + 8
  static constexpr int kValuePieces = 4 * kDim / 64;  // rows 2t, 2t + 1, 2t + 8, 2t + 9
  static constexpr int kBytes = (kKeyPieces + kValuePieces) * kPieceBytes;
  static constexpr int kStages = 24 * 1024 / kBytes;  // of a warp
};

/// What a part of the keys gives, before the division by its sum: a CTA's, of 16 rows.
template <int kDim>
struct Part {
  float out[kHeadTile][kDim];
  float maximum[kHeadTile], sum[kHeadTile];
};

/// What is needed at different times lies in the same place: `ring` is written once the lists are united, `part` once
/// no other CTA reads `kept`.
template <int kDim, int kWarps>
struct Shared {
  union {
    std::uint32_t scores[kHeadTile * kChunk];
    UnionEntries entries;
    char ring[kWarps][Tile<kDim>::kStages][Tile<kDim>::kBytes];
    Part<kDim> parts[kWarps];
  };
  union {
    Kept kept;
    Part<kDim> part;  // of the CTA
  };
  BlockUnion blocks;
};

/// A run of tiles, from one on: where its keys are and which heads attend them.
struct Place {
  std::int32_t start, end;  // positions; a tile at the end of a block is shorter
  std::uint32_t heads;
};

template <class T, int kDim, int kRows>
class Worker {
 public:
  static constexpr int kTileRows = kRows / 8;  // accumulator rows of a lane: g, and g + 8
  static constexpr int kOutPieces = kDim / 64;

  __device__ __forceinline__ Worker(const DecodeProblem& problem, const PagedRows& rows, int kv_head, char* ring)
      : problem_(problem),
        rows_(rows),
        k_(static_cast<const T*>(problem.k) + kv_head * problem.k_head_stride),
        v_(static_cast<const T*>(problem.v) + kv_head * problem.v_head_stride),
        ring_(shared_address(ring) + (threadIdx.x & 31) * 16),
        ring_pointer_(ring + (threadIdx.x & 31) * 16) {}

  __device__ __forceinline__ void load_queries(int row, int first_head, int heads) {
    const T* q = static_cast<const T*>(problem_.q) + row * problem_.q_row_stride;
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int head = g + 8 * i;
        uint4& piece = i == 0 ? low_[j] : high_[j];
        piece = i < kTileRows && head < heads
                    ? *reinterpret_cast<const uint4*>(q + (first_head + head) * problem_.q_head_stride + 8 * t + 32 * j)
                    : uint4{0, 0, 0, 0};
      }
    }
  }

  /// The row of the key that this lane looks up for all: the one at start + lane % 16.
  __device__ __forceinline__ std::int32_t look_up(const Place& place) const {
    return rows_.row(min(place.start + static_cast<int>(threadIdx.x & 15), place.end - 1));
  }

  __device__ __forceinline__ void copy(int stage, const Place& place, std::int32_t row_of_lane) const {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    std::uint32_t to = ring_ + stage * Tile<kDim>::kBytes;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = g + 8 * i;
      const std::int64_t row = __shfl_sync(0xffffffffu, row_of_lane, key);
      const T* from = k_ + row * problem_.k_row_stride + 8 * t;
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j, to += kPieceBytes) {
        copy_16_async(to, from + 32 * j, place.start + key < place.end);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = 2 * t + (i & 1) + (i >> 1) * 8;
      const std::int64_t row = __shfl_sync(0xffffffffu, row_of_lane, key);
      const T* from = v_ + row * problem_.v_row_stride + 8 * g;
#pragma unroll
      for (int j = 0; j < kOutPieces; ++j, to += kPieceBytes) {
        copy_16_async(to, from + 64 * j, place.start + key < place.end);
      }
    }
  }

  __device__ __forceinline__ void attend(int stage, const Place& place) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const char* from = ring_pointer_ + stage * Tile<kDim>::kBytes;
    const auto piece = [&](int index) { return *reinterpret_cast<const uint4*>(from + index * kPieceBytes); };
    float scores[2][4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint4 keys[kDim / 32];
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) keys[j] = piece(i * (kDim / 32) + j);
      row_products<T, kDim>(scores[i], low_, high_, keys);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (place.start + 8 * i + 2 * t + (c & 1) >= place.end) scores[i][c] = minus_infinity();
      }
    }
    // Heads that did not choose the block keep what they have: not even a NaN of the block may reach them.
    const float scale = problem_.softmax_scale * kLog2E;
    float shrink[2];
    bool attends[2];
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      attends[r] = place.heads >> (g + 8 * r) & 1;
      float high = fmaxf(fmaxf(scores[0][2 * r], scores[0][2 * r + 1]), fmaxf(scores[1][2 * r], scores[1][2 * r + 1]));
      high = fmaxf(quad_max(high), maximum_[r]);
      const float offset = high == minus_infinity() ? 0.0f : high * scale;
      shrink[r] = exp2_fast(maximum_[r] * scale - offset);
      float partial = 0.0f;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[i][2 * r + c];
          score = exp2_fast(fmaf(score, scale, -offset));
          partial += score;
        }
      }
      if (attends[r]) {
        maximum_[r] = high;
        sum_[r] = fmaf(sum_[r], shrink[r], partial);
      }
    }
    const std::uint32_t p0 = pack<T>(scores[0][0], scores[0][1]), p2 = pack<T>(scores[1][0], scores[1][1]);
    const std::uint32_t p1 = kTileRows == 2 ? pack<T>(scores[0][2], scores[0][3]) : 0u;
    const std::uint32_t p3 = kTileRows == 2 ? pack<T>(scores[1][2], scores[1][3]) : 0u;
#pragma unroll
    for (int j = 0; j < kOutPieces; ++j) {
      std::uint32_t values[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint4 of_row = piece(Tile<kDim>::kKeyPieces + i * kOutPieces + j);
        values[i][0] = of_row.x, values[i][1] = of_row.y, values[i][2] = of_row.z, values[i][3] = of_row.w;
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int half = e & 1 ? 0x7632 : 0x5410;  // the upper or lower halves of two rows side by side
        float products[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        mma_16x8x16<T>(products, p0, p1, p2, p3, __byte_perm(values[0][e / 2], values[1][e / 2], half),
                       __byte_perm(values[2][e / 2], values[3][e / 2], half));
#pragma unroll
        for (int r = 0; r < kTileRows; ++r) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& sum = out_[r][j][c][e];
            if (attends[r]) sum = fmaf(sum, shrink[r], products[2 * r + c]);
          }
        }
      }
    }
  }

  /// Leaves the warp's part in shared memory.
  __device__ __forceinline__ void store(Part<kDim>& part) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      const float total = quad_sum(sum_[r]);
      if (t == 0) {
        part.maximum[g + 8 * r] = maximum_[r];
        part.sum[g + 8 * r] = total;
      }
#pragma unroll
      for (int j = 0; j < kOutPieces; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float4* to = reinterpret_cast<float4*>(&part.out[g + 8 * r][64 * j + 16 * t + 8 * c]);
          const float(&of)[8] = out_[r][j][c];
          to[0] = {of[0], of[1], of[2], of[3]};
          to[1] = {of[4], of[5], of[6], of[7]};
        }
      }
    }
  }

 private:
  const DecodeProblem& problem_;
  const PagedRows& rows_;
  const T* k_;
  const T* v_;
  std::uint32_t ring_;
  const char* ring_pointer_;
  uint4 low_[kDim / 32], high_[kDim / 32];
  float maximum_[2] = {minus_infinity(), minus_infinity()}, sum_[2] = {0.0f, 0.0f};
  float out_[kTileRows][kOutPieces][2][8] = {};  // column 64 * piece + 16 * t + 8 * c + e
};

/// Four columns of a row of several parts, merged in their order; their maximum and sum likewise.
struct Merged {
  float4 out;
  float maximum, sum;
};

template <int kDim, int kMost, class PartOf>
__device__ __forceinline__ Merged merge(int parts, int row, int column, float scale, PartOf&& part_of) {
  Merged merged = {{0.0f, 0.0f, 0.0f, 0.0f}, minus_infinity(), 0.0f};
  float maxima[kMost], sums[kMost];
  float4 outs[kMost];
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    maxima[i] = minus_infinity(), sums[i] = 0.0f, outs[i] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (i >= parts) continue;
    const Part<kDim>* part = part_of(i);
    maxima[i] = part->maximum[row];
    sums[i] = part->sum[row];
    outs[i] = *reinterpret_cast<const float4*>(&part->out[row][column]);
  }
#pragma unroll
  for (int i = 0; i < kMost; ++i) merged.maximum = fmaxf(merged.maximum, maxima[i]);
  const float offset = merged.maximum == minus_infinity() ? 0.0f : merged.maximum * scale;
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    const float factor = exp2_fast(maxima[i] * scale - offset);
    merged.sum = fmaf(factor, sums[i], merged.sum);
    merged.out.x = fmaf(factor, outs[i].x, merged.out.x);
    merged.out.y = fmaf(factor, outs[i].y, merged.out.y);
    merged.out.z = fmaf(factor, outs[i].z, merged.out.z);
    merged.out.w = fmaf(factor, outs[i].w, merged.out.w);
  }
  return merged;
}

template <class T, int kDim, int kRows, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
    decode_attend_kernel(const __grid_constant__ DecodeProblem problem, const bool chooses) {
  extern __shared__ __align__(16) char memory[];
  constexpr int kThreads = kWarps * 32;
  auto& shared = *reinterpret_cast<Shared<kDim, kWarps>*>(memory);
  const int warp = threadIdx.x >> 5;
  const int rank = blockIdx.x, ranks = gridDim.x, row = blockIdx.z;
  const int group = problem.heads / problem.kv_heads, head_tiles = (group + kHeadTile - 1) / kHeadTile;
  const int kv_head = blockIdx.y / head_tiles, first_in_group = blockIdx.y % head_tiles * kHeadTile;
  const int first_head = kv_head * group + first_in_group, heads = min(kHeadTile, group - first_in_group);
  const bool per_head = problem.lists == problem.heads;
  const int lists = per_head ? heads : 1, budget = problem.budget;
  const int first_list = per_head ? first_head : first_head * problem.lists / problem.heads;

  const PagedRows rows(problem.batch, row);
  const int own = problem.block_size == 0 || rows.length == 0 ? 0 : (rows.length - 1) / problem.block_size;
  std::int32_t* of_row = problem.blocks + row * problem.row_stride + first_list * problem.list_stride;
  if (chooses) {
    const Unit unit = unit_of(problem, blockIdx.y);
    const Candidates candidates(problem, rows.length);
    keep_best_of_share<T, kDim, kWarps>(problem, rows, unit, candidates, row, rank, ranks, shared.kept, shared.scores);
    // Each CTA finishes all lists for itself, and list l % ranks for the caller.
    for (int list = warp; list < lists; list += kWarps) {
      finish_list(candidates, budget, shared.kept, list, ranks, [&](int place, std::int32_t block) {
        shared.blocks.block[list * budget + place] = block;
        if (list % ranks == rank) of_row[list * problem.list_stride + place] = block;
      });
    }
    cluster_arrive();  // has read what the others kept
  } else {
    for (int i = threadIdx.x; i < lists * budget; i += kThreads) {
      shared.blocks.block[i] = of_row[i / budget * problem.list_stride + i % budget];
    }
  }
  __syncthreads();
  if (budget > 0) unite_blocks<kWarps>(shared.blocks, shared.entries, lists, budget, own, rows.error_word);
  const int united = budget > 0 ? shared.blocks.count : 0;

  const int own_start = own * problem.block_size;
  const int block_tiles = (problem.block_size + kKeys - 1) / kKeys;
  const int tiles = united * block_tiles + (rows.length - own_start + kKeys - 1) / kKeys;
  const std::int64_t workers = std::int64_t{ranks} * kWarps, me = rank * kWarps + warp;
  const int begin = static_cast<int>(tiles * me / workers), end = static_cast<int>(tiles * (me + 1) / workers);
  const std::uint32_t all_heads = (1u << heads) - 1u;
  const auto place_of = [&](int tile) {
    Place place;
    const int index = united > 0 ? tile / block_tiles : 0;
    if (index < united) {
      const int block_start = shared.blocks.block[index] * problem.block_size;
      place.start = block_start + (tile - index * block_tiles) * kKeys;
      place.end = block_start + problem.block_size;
      place.heads = per_head ? shared.blocks.heads[index] : all_heads;
    } else {
      place.start = own_start + (tile - united * block_tiles) * kKeys;
      place.end = rows.length;
      place.heads = all_heads;
    }
    return place;
  };

  Worker<T, kDim, kRows> worker(problem, rows, kv_head, &shared.ring[warp][0][0]);
  constexpr int kStages = Tile<kDim>::kStages;
  std::int32_t next_row = 0;
  {
    std::int32_t first_rows[kStages];
#pragma unroll
    for (int i = 0; i < kStages; ++i) first_rows[i] = begin + i < end ? worker.look_up(place_of(begin + i)) : 0;
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      if (begin + i < end) worker.copy(i, place_of(begin + i), first_rows[i]);
      copy_async_commit();
    }
    if (begin + kStages < end) next_row = worker.look_up(place_of(begin + kStages));
  }
  worker.load_queries(row, first_head, heads);
  int stage = 0;
  for (int tile = begin; tile < end; ++tile) {
    copy_async_wait<kStages - 1>();
    worker.attend(stage, place_of(tile));
    if (tile + kStages < end) worker.copy(stage, place_of(tile + kStages), next_row);
    copy_async_commit();
    if (tile + kStages + 1 < end) next_row = worker.look_up(place_of(tile + kStages + 1));
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  copy_async_wait<0>();
  __syncthreads();  // parts lie where the rings were
  worker.store(shared.parts[warp]);
  if (chooses) cluster_wait();  // nobody reads what was kept, and the CTA's part may lie there
  __syncthreads();

  const float scale = problem.softmax_scale * kLog2E;
  const auto finish = [&](int head, int column, const Merged& merged) {
    const bool empty = merged.maximum == minus_infinity() && merged.sum == 0.0f;
    const float factor = empty ? 0.0f : 1.0f / merged.sum;
    T* out = static_cast<T*>(problem.out) + row * problem.out_row_stride +
             (first_head + head) * problem.out_head_stride + column;
    *reinterpret_cast<uint2*>(out) = {pack<T>(merged.out.x * factor, merged.out.y * factor),
                                      pack<T>(merged.out.z * factor, merged.out.w * factor)};
    if (column == 0) {
      problem.lse[(first_head + head) * problem.lse_head_stride + row] =
          empty ? minus_infinity() : merged.maximum * problem.softmax_scale + logf(merged.sum);
    }
  };
  constexpr int kQuads = kDim / 4;
  for (int i = threadIdx.x; i < heads * kQuads; i += kThreads) {
    const int head = i / kQuads, column = i % kQuads * 4;
    const Merged merged = merge<kDim, kWarps>(kWarps, head, column, scale, [&](int w) { return &shared.parts[w]; });
    if (ranks == 1) {
      finish(head, column, merged);
      continue;
    }
    *reinterpret_cast<float4*>(&shared.part.out[head][column]) = merged.out;
    if (column == 0) shared.part.maximum[head] = merged.maximum, shared.part.sum[head] = merged.sum;
  }
  if (ranks == 1) return;
  cluster_sync();
  for (int i = rank * kThreads + threadIdx.x; i < heads * kQuads; i += ranks * kThreads) {
    const int head = i / kQuads, column = i % kQuads * 4;
    finish(head, column,
           merge<kDim, kMostCluster>(ranks, head, column, scale, [&](int r) { return of_rank(&shared.part, r); }));
  }
  cluster_sync();  // nobody leaves while its shared memory is read
}

template <class T, int kDim, int kRows, int kWarps>
void launch(cudaStream_t stream, const DecodeProblem& problem, bool chooses) {
  const int group = problem.heads / problem.kv_heads;
  const auto kernel = decode_attend_kernel<T, kDim, kRows, kWarps>;
  constexpr int kBytes = sizeof(Shared<kDim, kWarps>);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "cudaFuncSetAttribute");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(problem.cluster),
                        static_cast<unsigned>(problem.kv_heads * ((group + kHeadTile - 1) / kHeadTile)),
                        static_cast<unsigned>(problem.batch.count));
  config.blockDim = dim3(kWarps * 32);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(problem.cluster), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, problem, chooses), "decode_attend");
}

}  // namespace

bool chooses_by_unit(const DecodeProblem& problem) {
  const int group = problem.heads / problem.kv_heads;
  return problem.lists == problem.heads || (problem.lists == problem.kv_heads && group <= kHeadTile);
}

void launch_decode_attend(cudaStream_t stream, DType dtype, std::int64_t head_dim, const DecodeProblem& problem,
                          bool chooses) {
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    const bool few = problem.heads / problem.kv_heads <= 8;
    if (problem.warps == 8) {
      return few ? launch<T, kDim, 8, 8>(stream, problem, chooses) : launch<T, kDim, 16, 8>(stream, problem, chooses);
    }
    return few ? launch<T, kDim, 8, 4>(stream, problem, chooses) : launch<T, kDim, 16, 4>(stream, problem, chooses);
  });
}

}  // namespace moba::cuda
