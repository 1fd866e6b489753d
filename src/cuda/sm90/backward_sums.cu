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

/// Where dq of a row from each slot lies, for the lane of a row: rounded, at places of the row's own, one for each unit
/// of the slot's block.
template <class T, int kDim>
struct RoundedPlaces {
  static constexpr int kAtOnce = 8;  // slots that are listed, and places that are asked for, together
  struct Part {
    uint4 words = {};
    __device__ void add_to(float (&sums)[8]) const { add_8<T>(sums, words); }
  };
  const uint4* first;
  int units;

  __device__ RoundedPlaces(const BackwardChunk& chunk, std::int64_t index, int lane)
      : first(static_cast<const uint4*>(chunk.partials) + index * (chunk.budget + 1) * chunk.unit_tiles * (kDim / 8) +
              lane),
        units(chunk.unit_tiles) {}
  __device__ void load(Part& part, int slot, int unit) const {
    part.words = __ldcs(first + static_cast<std::int64_t>(slot * units + unit) * (kDim / 8));
  }
  static __device__ void store(const RowsOf& tensor, std::int64_t token, std::int64_t head, int lane,
                               const float (&sums)[8]) {
    store_16<T>(tensor, token, head, lane, sums);
  }
};

/// The same in the fp32 tiles that the units of a block added to. A row has its columns in fours, as threads that
/// multiply hold them: a lane has columns [4 * (lane % 2), …) of the first and of the second half of 16 columns.
template <class T, int kDim>
struct TilePlaces {
  static constexpr int kAtOnce = 4;
  struct Part {
    float4 low = {}, high = {};
    __device__ void add_to(float (&sums)[8]) const {
      sums[0] += low.x, sums[1] += low.y, sums[2] += low.z, sums[3] += low.w;
      sums[4] += high.x, sums[5] += high.y, sums[6] += high.z, sums[7] += high.w;
    }
  };
  const float4* tiles;
  const std::uint32_t* rows;
  int lane;
  static constexpr int units = 1;

  __device__ TilePlaces(const BackwardChunk& chunk, std::int64_t index, int lane_of_row)
      : tiles(static_cast<const float4*>(chunk.partials)),
        rows(chunk.tile_rows + index * (chunk.budget + 1)),
        lane(lane_of_row) {}
  __device__ void load(Part& part, int slot, int) const {
    const std::uint32_t row = rows[slot];
    const float4* from = tiles + static_cast<std::uint64_t>(row) * (kDim / 4) + (2 * lane ^ (row & 1) * 4);
    part.low = __ldcs(from);
    part.high = __ldcs(from + 1);
  }
  static __device__ void store(const RowsOf& tensor, std::int64_t token, std::int64_t head, int lane,
                               const float (&sums)[8]) {
    T* to = static_cast<T*>(tensor.data) + token * tensor.token_stride + head * tensor.head_stride + lane / 2 * 16 +
            lane % 2 * 4;
    *reinterpret_cast<uint2*>(to) = {pack<T>(sums[0], sums[1]), pack<T>(sums[4], sums[5])};
    *reinterpret_cast<uint2*>(to + 8) = {pack<T>(sums[2], sums[3]), pack<T>(sums[6], sums[7])};
  }
};

template <class T, int kDim, class Places>
__global__ void __launch_bounds__(kThreads) add_partials_kernel(const BackwardChunk chunk) {
  using Lanes = RowLanes<kDim>;
  using Part = typename Places::Part;
  const int lane = Lanes::lane();
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
      const Places places(chunk, index, lane);
      const std::int32_t* list = chunk.blocks + row * chunk.blocks_row_stride +
                                 head * chunk.selection_heads / chunk.heads * chunk.blocks_head_stride;
      int previous = -1;  // the rule of for_each_listed_block() in src/sequences.h
      for (int first = 0; first < chunk.budget; first += Places::kAtOnce) {
        int blocks[Places::kAtOnce];
#pragma unroll
        for (int i = 0; i < Places::kAtOnce; ++i) blocks[i] = first + i < chunk.budget ? list[first + i] : -1;
        std::uint32_t listed = 0;
#pragma unroll
        for (int i = 0; i < Places::kAtOnce; ++i) {
          if (blocks[i] <= previous || blocks[i] >= own) continue;
          listed |= 1u << i;
          previous = blocks[i];
        }
        // The places of these slots, one after the other.
        for (int slot = 0, unit = 0; listed >> slot != 0;) {
          Part parts[Places::kAtOnce];
#pragma unroll
          for (int i = 0; i < Places::kAtOnce; ++i) {
            if (listed >> slot & 1u) places.load(parts[i], first + slot, unit);
            if (++unit == places.units) unit = 0, ++slot;
          }
#pragma unroll
          for (int i = 0; i < Places::kAtOnce; ++i) parts[i].add_to(sums);
        }
      }
      const int own_units =
          places.units == 1 ? 1 : static_cast<int>((position - own * chunk.block_size) / kUnitKeys) + 1;
      for (int unit = 0; unit < own_units; unit += 4) {
        Part parts[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (unit + i < own_units) places.load(parts[i], chunk.budget, unit + i);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) parts[i].add_to(sums);
      }
    }
    Places::store(chunk.dq, row, head, lane, sums);
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
    const auto kernel = chunk.turns == nullptr ? add_partials_kernel<T, kDim, RoundedPlaces<T, kDim>>
                                               : add_partials_kernel<T, kDim, TilePlaces<T, kDim>>;
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
