// dk and dv of units whose work was cut into parts: the slabs of the parts, added in order.
#pragma once

#include "cuda/sm90/backward_lanes.cuh"
#include "cuda/sm90/backward_tiles.cuh"

namespace moba::cuda {

/// Rows of the two sums of a unit that a warp adds at a time.
inline constexpr int kSlabRows = 8;

/// By one warp, all lanes together: takes rows of cut units until there are none.
template <class T, int kDim>
__device__ __forceinline__ void add_slabs(const BackwardChunk& chunk) {
  using Row = WarpRow<T, kDim>;
  constexpr int kPartsOfUnit = 2 * kUnitKeys / kSlabRows;
  const std::int64_t total = std::int64_t{chunk.counters[kCutUnitCount]} * kPartsOfUnit;
  for (std::int64_t at = take_number(&chunk.counters[kNextSlabRows]); at < total;
       at = take_number(&chunk.counters[kNextSlabRows])) {
    const std::int32_t index = chunk.cut_units[at / kPartsOfUnit];
    const UnitSlabs slabs = chunk.unit_slabs[index];
    const KeyUnit unit = key_unit(chunk, static_cast<std::uint32_t>(index), tile_rows_of(kDim));
    const int row = static_cast<int>(at % kPartsOfUnit) * kSlabRows, of = row / kUnitKeys;  // of: 0 dk, 1 dv
    const int key = row % kUnitKeys, keys = min(kSlabRows, unit.keys - key);
    const RowsOf& gradient = of == 0 ? chunk.dk : chunk.dv;
    T* out = static_cast<T*>(gradient.data) + (unit.first_key + key) * gradient.token_stride +
             unit.kv_head * gradient.head_stride;
    float sums[kSlabRows][Row::kShare] = {};
    const std::int64_t kv_head = unit.kv_head - chunk.first_kv_head;
    float* total_row = chunk.sums + ((of * chunk.kv_heads + kv_head) * chunk.total_keys + unit.first_key + key) * kDim;
    if (chunk.sums != nullptr) {
      for (int i = 0; i < keys; ++i) Row::load(total_row + i * kDim, sums[i]);
    }
    const float* slab = chunk.slabs + ((std::int64_t{slabs.first} * 2 + of) * kUnitKeys + key) * kDim;
    for (int part = 0; part < slabs.parts; ++part, slab += 2 * kUnitKeys * kDim) {
      float words[kSlabRows][Row::kShare];
#pragma unroll
      for (int i = 0; i < kSlabRows; ++i) Row::load(slab + i * kDim, words[i]);
#pragma unroll
      for (int i = 0; i < kSlabRows; ++i) {
#pragma unroll
        for (int j = 0; j < Row::kShare; ++j) sums[i][j] += words[i][j];
      }
    }
#pragma unroll
    for (int i = 0; i < kSlabRows; ++i) {
      if (i >= keys) break;
      if (chunk.sums != nullptr) {
        Row::store(total_row + i * kDim, sums[i]);
      } else {
        Row::store(out + i * gradient.token_stride, sums[i]);
      }
    }
  }
}

}  // namespace moba::cuda
