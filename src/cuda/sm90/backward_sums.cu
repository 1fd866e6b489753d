// What surrounds the products of attend_backward: the terms of each row before them, and ordered sums after them where
// tiles took turns or rows came in chunks.
#include <algorithm>

#include "cuda/cuda_check.h"
#include "cuda/device/element.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/instances.h"
#include "cuda/sm90/backward.h"
#include "cuda/sm90/sequence_lookup.cuh"

namespace moba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocks = std::int64_t{1} << 30;

unsigned blocks_for(std::int64_t items, std::int64_t a_block) {
  return static_cast<unsigned>(std::min((items + a_block - 1) / a_block, kMostBlocks));
}

/// A row of D elements is a job of D / 8 lanes, 16 bytes each.
template <int kDim>
struct RowLanes {
  static constexpr int kLanes = kDim / 8;
  static constexpr int kRowsOfBlock = kThreads / kLanes;
  static __device__ int lane() { return static_cast<int>(threadIdx.x) % kLanes; }
  static __device__ std::int64_t first_row() {
    return static_cast<std::int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.x / kLanes;
  }
  static __device__ std::int64_t step() { return static_cast<std::int64_t>(gridDim.x) * kRowsOfBlock; }
};

template <class T>
__device__ uint4 load_16(const RowsOf& tensor, std::int64_t token, std::int64_t head, int lane) {
  return *reinterpret_cast<const uint4*>(static_cast<const T*>(tensor.data) + token * tensor.token_stride +
                                         head * tensor.head_stride + lane * 8);
}

template <class T>
__device__ void store_16(const RowsOf& tensor, std::int64_t token, std::int64_t head, int lane, const float (&x)[8]) {
  // As an intrinsic: the compiler makes four stores of an assignment.
  __stwb(reinterpret_cast<uint4*>(static_cast<T*>(tensor.data) + token * tensor.token_stride +
                                  head * tensor.head_stride + lane * 8),
         uint4{pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7])});
}

template <class T>
__device__ float dot_8(uint4 a, uint4 b) {
  const std::uint32_t a_words[4] = {a.x, a.y, a.z, a.w}, b_words[4] = {b.x, b.y, b.z, b.w};
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = unpack<T>(a_words[i]), y = unpack<T>(b_words[i]);
    sum = fmaf(x.x, y.x, sum);
    sum = fmaf(x.y, y.y, sum);
  }
  return sum;
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads) row_terms_kernel(const TermsInput input) {
  using Lanes = RowLanes<kDim>;
  const int lane = Lanes::lane();
  // The lanes of a warp end together: rows past the end repeat the last one.
  const std::int64_t count = input.rows * input.heads;
  const std::int64_t rounded = (count + Lanes::kRowsOfBlock - 1) / Lanes::kRowsOfBlock * Lanes::kRowsOfBlock;
  for (std::int64_t at = Lanes::first_row(); at < rounded; at += Lanes::step()) {
    const std::int64_t index = min(at, count - 1), head = index / input.rows, row = index % input.rows;
    float delta = dot_8<T>(load_16<T>(input.out, row, head, lane), load_16<T>(input.dout, row, head, lane));
#pragma unroll
    for (int step = 1; step < Lanes::kLanes; step *= 2) delta += __shfl_xor_sync(0xffffffffu, delta, step);
    if (lane == 0) {
      const float lse = input.lse[head * input.lse_head_stride + row * input.lse_row_stride];
      const float dlse =
          input.dlse == nullptr ? 0.0f : input.dlse[head * input.dlse_head_stride + row * input.dlse_row_stride];
      // Against +inf every probability is 0: a row all of whose scores are -inf has no gradient.
      input.terms[index] = {lse == minus_infinity() ? -minus_infinity() : lse * kLog2E, delta - dlse};
    }
  }
}

constexpr int kTileDim = 128;  // of all tiles that take turns
static_assert(!takes_turns(kFewestTurns, 64));

/// A lane's part of a row of an fp32 tile to which the units of a block added. Threads that multiply hold columns in
/// fours: a lane has columns [4 * (lane % 2), …) of the first and of the second half of 16 columns.
struct TilePart {
  float4 low = {}, high = {};
  __device__ void load(const BackwardChunk& chunk, std::uint32_t row, int lane) {
    const float4* from = static_cast<const float4*>(chunk.partials) + static_cast<std::uint64_t>(row) * (kTileDim / 4) +
                         (2 * lane ^ (row & 1) * 4);
    low = __ldcs(from);
    high = __ldcs(from + 1);
  }
  __device__ void add_to(float (&sums)[8]) const {
    sums[0] += low.x, sums[1] += low.y, sums[2] += low.z, sums[3] += low.w;
    sums[4] += high.x, sums[5] += high.y, sums[6] += high.z, sums[7] += high.w;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) add_tiles_kernel(const BackwardChunk chunk) {
  using Lanes = RowLanes<kTileDim>;
  const int lane = Lanes::lane();
  const std::uint32_t heads = static_cast<std::uint32_t>(chunk.kv_heads * chunk.group);
  RowLookup lookup{chunk.sequences, chunk.sequence_count, chunk.block_size};
  for (std::int64_t index = Lanes::first_row(); index < chunk.rows * heads; index += Lanes::step()) {
    const std::uint32_t of_chunk = static_cast<std::uint32_t>(index) / heads;  // counted in 32 bits
    const std::int64_t row = chunk.first_row + of_chunk;
    const std::int64_t head =
        std::int64_t{chunk.first_kv_head} * chunk.group + (index - std::int64_t{of_chunk} * heads);
    const int own = static_cast<int>(lookup.own_block(row));
    float sums[8] = {};
    if (row + lookup.shift >= 0) {
      const std::uint32_t* tile_rows = chunk.tile_rows + index * (chunk.budget + 1);
      const std::int32_t* list = chunk.blocks + row * chunk.blocks_row_stride +
                                 head * chunk.selection_heads / chunk.heads * chunk.blocks_head_stride;
      constexpr int kAtOnce = 4;
      int previous = -1;  // the rule of for_each_listed_block() in src/sequences.h
      for (int first = 0; first < chunk.budget; first += kAtOnce) {
        int blocks[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) blocks[i] = first + i < chunk.budget ? list[first + i] : -1;
        TilePart parts[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (blocks[i] <= previous || blocks[i] >= own) continue;
          previous = blocks[i];
          parts[i].load(chunk, tile_rows[first + i], lane);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) parts[i].add_to(sums);
      }
      TilePart part;
      part.load(chunk, tile_rows[chunk.budget], lane);
      part.add_to(sums);
    }
    T* to = static_cast<T*>(chunk.dq.data) + row * chunk.dq.token_stride + head * chunk.dq.head_stride + lane / 2 * 16 +
            lane % 2 * 4;
    *reinterpret_cast<uint2*>(to) = {pack<T>(sums[0], sums[1]), pack<T>(sums[4], sums[5])};
    *reinterpret_cast<uint2*>(to + 8) = {pack<T>(sums[2], sums[3]), pack<T>(sums[6], sums[7])};
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads) round_sums_kernel(const BackwardChunk chunk) {
  using Lanes = RowLanes<kDim>;
  const int lane = Lanes::lane();
  const std::int64_t rows = chunk.kv_heads * chunk.total_keys;
  for (std::int64_t index = Lanes::first_row(); index < 2 * rows; index += Lanes::step()) {
    const float* from = chunk.sums + index * kDim + lane * 8;
    float sums[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] = from[i];
    const std::int64_t kv_head = chunk.first_kv_head + index % rows / chunk.total_keys;
    store_16<T>(index < rows ? chunk.dk : chunk.dv, index % chunk.total_keys, kv_head, lane, sums);
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads) clear_keyless_kernel(const BackwardChunk chunk, std::int64_t kv_heads) {
  using Lanes = RowLanes<kDim>;
  const int lane = Lanes::lane();
  for (std::int64_t key = Lanes::first_row(); key < chunk.total_keys; key += Lanes::step()) {
    std::int64_t low = 0, high = chunk.sequence_count;
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (chunk.sequences[middle].k_begin <= key) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (low > 0 && key < chunk.sequences[low - 1].k_begin + chunk.sequences[low - 1].k_length) continue;
    const float zeros[8] = {};
    for (std::int64_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
      store_16<T>(chunk.dk, key, kv_head, lane, zeros);
      store_16<T>(chunk.dv, key, kv_head, lane, zeros);
    }
  }
}

}  // namespace

void launch_row_terms(const TermsInput& input, DType dtype, int head_dim, cudaStream_t stream) {
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    if (input.rows * input.heads == 0) return;
    row_terms_kernel<T, kDim>
        <<<blocks_for(input.rows * input.heads, RowLanes<kDim>::kRowsOfBlock), kThreads, 0, stream>>>(input);
    check_cuda(cudaGetLastError(), "attend_backward: terms of rows");
  });
}

void launch_add_tiles(const BackwardChunk& chunk, DType dtype, cudaStream_t stream) {
  const std::int64_t rows = chunk.rows * chunk.kv_heads * chunk.group;
  if (rows == 0) return;
  const auto kernel = dtype == DType::kBFloat16 ? add_tiles_kernel<__nv_bfloat16> : add_tiles_kernel<__half>;
  kernel<<<blocks_for(rows, RowLanes<kTileDim>::kRowsOfBlock), kThreads, 0, stream>>>(chunk);
  check_cuda(cudaGetLastError(), "attend_backward: sum of dq");
}

void launch_round_sums(const BackwardChunk& chunk, DType dtype, int head_dim, cudaStream_t stream) {
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    const std::int64_t rows = 2 * chunk.kv_heads * chunk.total_keys;
    if (rows == 0) return;
    round_sums_kernel<T, kDim><<<blocks_for(rows, RowLanes<kDim>::kRowsOfBlock), kThreads, 0, stream>>>(chunk);
    check_cuda(cudaGetLastError(), "attend_backward: rounding of dk and dv");
  });
}

void launch_clear_keyless(const BackwardChunk& chunk, std::int64_t kv_heads, DType dtype, int head_dim,
                          cudaStream_t stream) {
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    if (chunk.total_keys == 0) return;
    clear_keyless_kernel<T, kDim>
        <<<blocks_for(chunk.total_keys, RowLanes<kDim>::kRowsOfBlock), kThreads, 0, stream>>>(chunk, kv_heads);
    check_cuda(cudaGetLastError(), "attend_backward: keys of no sequence");
  });
}

}  // namespace moba::cuda
