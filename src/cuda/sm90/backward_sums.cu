// What surrounds the products of attend_backward: the terms of each row before them, ordered sums after them.
#include <algorithm>
#include <type_traits>

#include "cuda/cuda_check.h"
#include "cuda/device/element.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/instances.h"
#include "cuda/sm90/backward.h"
#include "cuda/sm90/backward_tiles.cuh"
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
  *reinterpret_cast<uint4*>(static_cast<T*>(tensor.data) + token * tensor.token_stride + head * tensor.head_stride +
                            lane * 8) = {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]),
                                         pack<T>(x[6], x[7])};
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

template <class T>
__device__ void add_8(float (&sums)[8], uint4 a) {
  const std::uint32_t words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = unpack<T>(words[i]);
    sums[2 * i] += x.x;
    sums[2 * i + 1] += x.y;
  }
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

/// The part of a place that a lane adds: 8 columns in the order that the place has them in.
template <class T>
struct RoundedPart {
  static constexpr int kAtOnce = 8;  // slots whose places are asked for together
  uint4 words = {};
  __device__ void load(const void* places, std::int64_t at) { words = __ldcs(static_cast<const uint4*>(places) + at); }
  __device__ void add_to(float (&sums)[8]) const { add_8<T>(sums, words); }
};
struct FloatPart {
  static constexpr int kAtOnce = 4;
  float4 low = {}, high = {};
  __device__ void load(const void* places, std::int64_t at) {
    low = __ldcs(static_cast<const float4*>(places) + 2 * at);
    high = __ldcs(static_cast<const float4*>(places) + 2 * at + 1);
  }
  __device__ void add_to(float (&sums)[8]) const {
    sums[0] += low.x, sums[1] += low.y, sums[2] += low.z, sums[3] += low.w;
    sums[4] += high.x, sums[5] += high.y, sums[6] += high.z, sums[7] += high.w;
  }
};

/// An fp32 place has its columns in fours, as threads that multiply hold them: a lane has columns [4 * (lane % 2), …)
/// of the first and of the second half of 16 columns.
template <class T>
__device__ void store_fours(const RowsOf& tensor, std::int64_t token, std::int64_t head, int lane,
                            const float (&x)[8]) {
  T* to = static_cast<T*>(tensor.data) + token * tensor.token_stride + head * tensor.head_stride + lane / 2 * 16 +
          lane % 2 * 4;
  *reinterpret_cast<uint2*>(to) = {pack<T>(x[0], x[1]), pack<T>(x[4], x[5])};
  *reinterpret_cast<uint2*>(to + 8) = {pack<T>(x[2], x[3]), pack<T>(x[6], x[7])};
}

template <class T, int kDim, class Part>
__global__ void __launch_bounds__(kThreads) add_partials_kernel(const BackwardChunk chunk) {
  using Lanes = RowLanes<kDim>;
  const int lane = Lanes::lane(), units = chunk.place_units();
  const std::uint32_t heads = static_cast<std::uint32_t>(chunk.kv_heads * chunk.group);
  RowLookup lookup{chunk.sequences, chunk.sequence_count, chunk.block_size};
  for (std::int64_t index = Lanes::first_row(); index < chunk.rows * heads; index += Lanes::step()) {
    const std::uint32_t of_chunk = static_cast<std::uint32_t>(index) / heads;  // places are counted in 32 bits
    const std::int64_t row = chunk.first_row + of_chunk;
    const std::int64_t head =
        std::int64_t{chunk.first_kv_head} * chunk.group + (index - std::int64_t{of_chunk} * heads);
    const int own = static_cast<int>(lookup.own_block(row));
    const std::int64_t position = row + lookup.shift;
    float sums[8] = {};
    if (position >= 0) {
      // The lane's part of the place of slot 0 and unit 0, in parts.
      const std::int64_t first_part = index * (chunk.budget + 1) * units * Lanes::kLanes + lane;
      const auto load = [&](Part& part, int slot, int unit) {
        part.load(chunk.partials, first_part + static_cast<std::int64_t>(slot * units + unit) * Lanes::kLanes);
      };
      const std::int32_t* list = chunk.blocks + row * chunk.blocks_row_stride +
                                 head * chunk.selection_heads / chunk.heads * chunk.blocks_head_stride;
      int previous = -1;  // the rule of for_each_listed_block() in src/sequences.h
      for (int first = 0; first < chunk.budget; first += Part::kAtOnce) {
        int blocks[Part::kAtOnce];
#pragma unroll
        for (int i = 0; i < Part::kAtOnce; ++i) blocks[i] = first + i < chunk.budget ? list[first + i] : -1;
        std::uint32_t listed = 0;
#pragma unroll
        for (int i = 0; i < Part::kAtOnce; ++i) {
          if (blocks[i] <= previous || blocks[i] >= own) continue;
          listed |= 1u << i;
          previous = blocks[i];
        }
        if (units == 1) {
          Part parts[Part::kAtOnce];
#pragma unroll
          for (int i = 0; i < Part::kAtOnce; ++i) {
            if (listed >> i & 1u) load(parts[i], first + i, 0);
          }
#pragma unroll
          for (int i = 0; i < Part::kAtOnce; ++i) parts[i].add_to(sums);
          continue;
        }
        for (; listed != 0; listed &= listed - 1) {
          const int slot = first + __ffs(static_cast<int>(listed)) - 1;
#pragma unroll 4
          for (int unit = 0; unit < units; ++unit) {
            Part part;
            load(part, slot, unit);
            part.add_to(sums);
          }
        }
      }
      const int own_units = units == 1 ? 1 : static_cast<int>((position - own * chunk.block_size) / kUnitKeys) + 1;
#pragma unroll 4
      for (int unit = 0; unit < own_units; ++unit) {
        Part part;
        load(part, chunk.budget, unit);
        part.add_to(sums);
      }
    }
    if constexpr (std::is_same_v<Part, FloatPart>) {
      store_fours<T>(chunk.dq, row, head, lane, sums);
    } else {
      store_16<T>(chunk.dq, row, head, lane, sums);
    }
  }
}

/// One thread block a unit; those that are whole have nothing to add.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads) add_slabs_kernel(const BackwardChunk chunk) {
  const UnitSlabs slabs = chunk.unit_slabs[blockIdx.x];
  if (slabs.parts < 2) return;
  const Unit unit(chunk, blockIdx.x, tile_rows_of(kDim));
  constexpr int kLanes = kDim / 8;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (int index = static_cast<int>(threadIdx.x) / kLanes; index < 2 * kUnitKeys; index += kThreads / kLanes) {
    const int key = index % kUnitKeys, of = index / kUnitKeys;  // of: 0 dk, 1 dv
    if (key >= unit.keys) continue;
    float* total = chunk.sums == nullptr
                       ? nullptr
                       : chunk.sums +
                             ((static_cast<std::int64_t>(of) * chunk.kv_heads + unit.kv_head - chunk.first_kv_head) *
                                  chunk.total_keys +
                              unit.first_key + key) *
                                 kDim +
                             lane * 8;
    float sums[8] = {};
    if (total != nullptr) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[i] = total[i];
    }
    const float* slab =
        chunk.slabs + ((static_cast<std::int64_t>(slabs.first) * 2 + of) * kUnitKeys + key) * kDim + lane * 8;
    for (int part = 0; part < slabs.parts; ++part, slab += 2 * kUnitKeys * kDim) {
      const float4 low = reinterpret_cast<const float4*>(slab)[0], high = reinterpret_cast<const float4*>(slab)[1];
      sums[0] += low.x, sums[1] += low.y, sums[2] += low.z, sums[3] += low.w;
      sums[4] += high.x, sums[5] += high.y, sums[6] += high.z, sums[7] += high.w;
    }
    if (total != nullptr) {
#pragma unroll
      for (int i = 0; i < 8; ++i) total[i] = sums[i];
    } else {
      store_16<T>(of == 0 ? chunk.dk : chunk.dv, unit.first_key + key, unit.kv_head, lane, sums);
    }
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

void launch_add_partials(const BackwardChunk& chunk, DType dtype, int head_dim, cudaStream_t stream) {
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    const std::int64_t rows = chunk.rows * chunk.kv_heads * chunk.group;
    if (rows == 0) return;
    const auto kernel =
        chunk.turns == nullptr ? add_partials_kernel<T, kDim, RoundedPart<T>> : add_partials_kernel<T, kDim, FloatPart>;
    kernel<<<blocks_for(rows, RowLanes<kDim>::kRowsOfBlock), kThreads, 0, stream>>>(chunk);
    check_cuda(cudaGetLastError(), "attend_backward: sum of dq");
  });
}

void launch_add_slabs(const BackwardChunk& chunk, DType dtype, int head_dim, cudaStream_t stream) {
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    if (chunk.units() == 0) return;
    add_slabs_kernel<T, kDim><<<static_cast<unsigned>(chunk.units()), kThreads, 0, stream>>>(chunk);
    check_cuda(cudaGetLastError(), "attend_backward: sum of parts");
  });
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
