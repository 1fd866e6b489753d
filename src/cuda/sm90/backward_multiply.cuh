// The warpgroups of the products of attend_backward that multiply: keys [64 * warpgroup, 64 * warpgroup + 64) of the
// unit.
#pragma once

#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/quad.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/sm90/backward.h"
#include "cuda/sm90/backward_shared.cuh"
#include "cuda/sm90/backward_tiles.cuh"

namespace moba::cuda {

__device__ __forceinline__ void store_shared(std::uint32_t shared, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

template <class T, int kDim, bool kTurns>
class Multiplier {
 public:
  using Shape = BackwardShape<kDim>;
  using Shared = BackwardShared<kDim, kTurns>;
  static constexpr int kRows = Shape::kRows;

  __device__ Multiplier(const BackwardChunk& chunk, Shared& shared, int warpgroup)
      : chunk_(chunk), shared_(shared), warpgroup_(warpgroup) {}

  __device__ void run() {
    float dk[kDim / 2], dv[kDim / 2];
    std::uint32_t keys_parity = 0;
    shared_.full[0].wait(0);
    for (;;) {
      const TileHeader header = shared_.headers[place_.stage];
      if (header.item < 0) break;
      if (header.flags & kFirstTile) {
        shared_.keys_full.wait(keys_parity);
        keys_parity ^= 1u;
        fence_async_proxy();  // cp.async wrote the operands as ordinary stores
      }
      multiply(header.flags, dk, dv);
      if (header.flags & kLastTile) store_sums(header, dk, dv);
    }
  }

 private:
  static constexpr int kSlopeBarriers = 2;  // the first of four: 2 * buffer + the warpgroup that waits
  /// The left operand of dV is ready before dP is, but D = 64 has no registers for it then.
  static constexpr bool kEarlyValues = kDim == 128;

  /// One tile. The products are queued so that the tensor cores have work while this warpgroup computes: dQ of the tile
  /// before under the exponentials, dV under dS, dK and the next tile's S where one tile ends and the next begins.
  __device__ __forceinline__ void multiply(int flags, float (&dk)[kDim / 2], float (&dv)[kDim / 2]) {
    const bool first = flags & kFirstTile, masked = flags & kMaskedTile, last = flags & kLastTile;
    const int stage = place_.stage;
    const BackwardStage<kDim>& tile = shared_.stages[stage];
    const int thread = thread_again(), lane = thread & 31, warp = thread >> 5 & 3;
    const int first_key = warpgroup_ * 64;
    float p[kRows / 2], ds[kRows / 2], dq[32];
    hold_registers(dk);
    hold_registers(dv);
    wgmma_fence();
    wgmma_tiles<T, kRows, kDim / 16, Major::K, Major::K>(p, tile_descriptor<Major::K>(shared_.k, kUnitKeys, first_key),
                                                         kUnitKeys, tile_descriptor<Major::K>(tile.q, kRows), kRows,
                                                         false);
    wgmma_commit();
    // An item's first tile has none before it: the product is made of anything, and not stored.
    if (!first) named_sync(kSlopeBarriers + 2 * (buffer_ ^ 1) + warpgroup_, 256);
    multiply_queries(buffer_ ^ 1, dq);
    wgmma_wait<1>();
    hold_registers(p);
    hold_registers(dk);
    hold_registers(dv);
    if (!first) release(lane);

    const int column = 2 * (lane & 3), key = first_key + warp * 16 + (lane >> 2);
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
      const float4 terms = *reinterpret_cast<const float4*>(&shared_.terms[stage][8 * j + column]);
      p[4 * j] = exp2_fast(fmaf(p[4 * j], chunk_.softmax_scale * kLog2E, -terms.x));
      p[4 * j + 1] = exp2_fast(fmaf(p[4 * j + 1], chunk_.softmax_scale * kLog2E, -terms.z));
      p[4 * j + 2] = exp2_fast(fmaf(p[4 * j + 2], chunk_.softmax_scale * kLog2E, -terms.x));
      p[4 * j + 3] = exp2_fast(fmaf(p[4 * j + 3], chunk_.softmax_scale * kLog2E, -terms.z));
    }
    // The branch also keeps the exponentials under the product of dQ, from which the compiler would move them away.
    if (masked) mask(p, stage, key, column);
    wgmma_wait<0>();
    hold_registers(dq);
    if (!first) store_queries(dq, lane, warp);
    wgmma_fence();
    wgmma_tiles<T, kRows, kDim / 16, Major::K, Major::K>(ds, tile_descriptor<Major::K>(shared_.v, kUnitKeys, first_key),
                                                         kUnitKeys, tile_descriptor<Major::K>(tile.dout, kRows), kRows,
                                                         false);
    wgmma_commit();
    std::uint32_t p_packed[kRows / 4], ds_packed[kRows / 4];
    if constexpr (kEarlyValues) {
      pack_rows<T, kRows>(p_packed, p);
      hold_registers(p_packed);
      multiply_values(tile, p_packed, first, dv);
    }
    wgmma_wait<kEarlyValues ? 1 : 0>();
    hold_registers(ds);
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
      const float4 terms = *reinterpret_cast<const float4*>(&shared_.terms[stage][8 * j + column]);
      ds[4 * j] = p[4 * j] * (ds[4 * j] - terms.y);
      ds[4 * j + 1] = p[4 * j + 1] * (ds[4 * j + 1] - terms.w);
      ds[4 * j + 2] = p[4 * j + 2] * (ds[4 * j + 2] - terms.y);
      ds[4 * j + 3] = p[4 * j + 3] * (ds[4 * j + 3] - terms.w);
    }
    if (masked) mask(ds, stage, key, column);
    if constexpr (!kEarlyValues) {
      pack_rows<T, kRows>(p_packed, p);
      hold_registers(p_packed);
      multiply_values(tile, p_packed, first, dv);
    }
    pack_rows<T, kRows>(ds_packed, ds);
    hold_registers(ds_packed);
    store_slopes(buffer_, lane, warp, ds_packed);
    place_.advance();
    shared_.full[place_.stage].wait(place_.parity);
    // Of the slopes, of dq, and of the next tile, which cp.async wrote as ordinary stores.
    fence_async_proxy();
    __syncwarp();
    if (!first && lane == 0) shared_.gradients_full.arrive();
    named_arrive(kSlopeBarriers + 2 * buffer_ + (warpgroup_ ^ 1), 256);
    wgmma_fence();
    wgmma_tiles<T, kDim, kRows / 16, Major::MN>(dk, ds_packed, tile_descriptor<Major::MN>(tile.q, kRows), kRows,
                                                !first);
    wgmma_commit();
    wgmma_wait<0>();
    hold_registers(dk);
    hold_registers(dv);
    if (last) {
      named_sync(kSlopeBarriers + 2 * buffer_ + warpgroup_, 256);
      multiply_queries(buffer_, dq);
      wgmma_wait<0>();
      hold_registers(dq);
      hold_registers(dk);
      hold_registers(dv);
      release(lane);
      if (lane == 0) shared_.keys_empty.arrive();
      store_queries(dq, lane, warp);
      fence_async_proxy();
      __syncwarp();
      if (lane == 0) shared_.gradients_full.arrive();
    }
    buffer_ ^= 1;
  }

  __device__ __forceinline__ void multiply_values(const BackwardStage<kDim>& tile,
                                                  const std::uint32_t (&p_packed)[kRows / 4], bool first,
                                                  float (&dv)[kDim / 2]) const {
    wgmma_fence();
    wgmma_tiles<T, kDim, kRows / 16, Major::MN>(dv, p_packed, tile_descriptor<Major::MN>(tile.dout, kRows), kRows,
                                                !first);
    wgmma_commit();
  }

  /// dQ: rows [64 * warpgroup, …) where the tile has 128, else columns [64 * warpgroup, …) of its 64 rows.
  static constexpr bool kByRows = Shape::kRowPanels == 2;
  static constexpr int kGradientBytes = GradientRows<kDim, kTurns>::kRowBytes;
  __device__ __forceinline__ void multiply_queries(int buffer, float (&dq)[32]) const {
    const std::uint16_t* slopes = shared_.slopes[buffer] + (kByRows ? warpgroup_ * kUnitKeys * 64 : 0);
    const std::uint16_t* keys = shared_.k + (kByRows ? 0 : warpgroup_ * kUnitKeys * 64);
    wgmma_fence();
    wgmma_tiles<T, 64, kUnitKeys / 16, Major::MN, Major::MN>(dq, tile_descriptor<Major::MN>(slopes, kUnitKeys),
                                                             kUnitKeys, tile_descriptor<Major::MN>(keys, kUnitKeys),
                                                             kUnitKeys, false);
    wgmma_commit();
  }

  /// The stage of the tile before the place in the ring is free for other rows.
  __device__ __forceinline__ void release(int lane) {
    const int stage = place_.stage == 0 ? Shape::kStages - 1 : place_.stage - 1;
    __syncwarp();
    if (lane == 0) shared_.empty[stage].arrive();
  }

  /// dQ, for the gathering warpgroup to move to its places.
  __device__ __forceinline__ void store_queries(const float (&dq)[32], int lane, int warp) {
    shared_.gradients_empty.wait(gradients_parity_ ^ 1u);
    gradients_parity_ ^= 1u;
    const int first_row = (kByRows ? warpgroup_ * 64 : 0) + warp * 16, first_column = kByRows ? 0 : warpgroup_ * 64;
    const std::uint32_t base = shared_address(shared_.query_gradients);
    if constexpr (kTurns) {
      store_floats(dq, base, first_row + (lane >> 2), first_column + 4 * (lane & 3));
    } else {
      store_rounded(dq, base + (first_row + (lane & 15)) * kGradientBytes + (first_column + (lane >> 4) * 8) * 2);
    }
  }

  __device__ __forceinline__ void store_rounded(const float (&dq)[32], std::uint32_t shared) const {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 8 * step + 2 * i;
        words[i] = pack<T>(dq[at] * chunk_.softmax_scale, dq[at + 1] * chunk_.softmax_scale);
      }
      store_matrices(shared + step * 32, words);
    }
  }

  /// Columns are stored in fours of a thread; launch_add_partials() knows.
  __device__ __forceinline__ void store_floats(const float (&dq)[32], std::uint32_t shared, int row, int column) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t address = shared + (row + 8 * i) * kGradientBytes + column * 4;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* x = dq + 8 * j + 2 * i;
        store_shared((address + j * 64) ^ (row & 1) * 64, x[0] * chunk_.softmax_scale, x[1] * chunk_.softmax_scale,
                     x[4] * chunk_.softmax_scale, x[5] * chunk_.softmax_scale);
      }
    }
  }

  /// Zero where the row does not see the key.
  __device__ __forceinline__ void mask(float (&x)[kRows / 2], int stage, int key, int column) const {
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
      const int2 last = *reinterpret_cast<const int2*>(&shared_.last_keys[stage][8 * j + column]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (key + 8 * (i >> 1) > (i & 1 ? last.y : last.x)) x[4 * j + i] = 0.0f;
      }
    }
  }

  /// threadIdx.x, which the compiler must not keep: addresses made from it are made anew for each tile, because there
  /// are no registers to hold them beside the accumulators.
  static __device__ __forceinline__ int thread_again() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
  }

  /// dS^T as [R / 64][128 keys][64 rows], swizzled: the left operand of dQ, contiguous along the rows.
  __device__ __forceinline__ void store_slopes(int buffer, int lane, int warp,
                                               const std::uint32_t (&ds)[kRows / 4]) const {
    const int key = warpgroup_ * 64 + warp * 16 + (lane & 15);
    const std::uint32_t base = shared_address(shared_.slopes[buffer]);
#pragma unroll
    for (int step = 0; step < kRows / 16; ++step) {
      const std::uint32_t address = base + swizzled_offset(kUnitKeys, key, 2 * step + (lane >> 4));
      store_matrices(address, ds + 4 * step);
    }
  }

  __device__ __forceinline__ void store_sums(const TileHeader& header, float (&dk)[kDim / 2], float (&dv)[kDim / 2]) {
    const BackwardItem item = chunk_.items[header.item];
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5 & 3;
    const int key = warpgroup_ * 64 + warp * 16 + (lane >> 2);
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) dk[i] *= chunk_.softmax_scale;
    if (item.slab >= 0) {
      float* slab = chunk_.slabs + static_cast<std::int64_t>(item.slab) * 2 * kUnitKeys * kDim;
      store_key_floats<false>(dk, slab + key * kDim, kDim, key, header.keys);
      store_key_floats<false>(dv, slab + (kUnitKeys + key) * kDim, kDim, key, header.keys);
      return;
    }
    const Unit unit(chunk_, item.unit, kRows);
    const std::int64_t first = unit.first_key + key;
    if (chunk_.sums != nullptr) {
      const std::int64_t kv_head = unit.kv_head - chunk_.first_kv_head;
      float* sum = chunk_.sums + (kv_head * chunk_.total_keys + first) * kDim;
      store_key_floats<true>(dk, sum, kDim, key, header.keys);
      store_key_floats<true>(dv, sum + chunk_.kv_heads * chunk_.total_keys * kDim, kDim, key, header.keys);
    } else {
      store_keys(dk, chunk_.dk, first, unit.kv_head, key, header.keys);
      store_keys(dv, chunk_.dv, first, unit.kv_head, key, header.keys);
    }
  }

  /// Rows `key` and key + 8 of an accumulator to `to` and 8 rows further; added to what is there where kAdd.
  template <bool kAdd>
  __device__ __forceinline__ void store_key_floats(const float (&sums)[kDim / 2], float* to, int stride, int key,
                                                   int keys) {
    const int column = 2 * (static_cast<int>(threadIdx.x) & 3);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (key + 8 * i >= keys) continue;
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        float2* at = reinterpret_cast<float2*>(to + 8 * i * stride + 8 * j + column);
        float2 value = {sums[4 * j + 2 * i], sums[4 * j + 2 * i + 1]};
        if constexpr (kAdd) {
          const float2 before = *at;
          value = {before.x + value.x, before.y + value.y};
        }
        *at = value;
      }
    }
  }

  __device__ __forceinline__ void store_keys(const float (&sums)[kDim / 2], const RowsOf& tensor, std::int64_t first,
                                             int kv_head, int key, int keys) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      T* to = static_cast<T*>(tensor.data) + (first + 8 * i) * tensor.token_stride + kv_head * tensor.head_stride;
#pragma unroll
      for (int group = 0; group < kDim / 32; ++group) {
        std::uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = 4 * (4 * group + j) + 2 * i;
          words[j] = pack<T>(sums[at], sums[at + 1]);
        }
        quad_transpose(words);
        if (key + 8 * i < keys) {
          __stwb(reinterpret_cast<uint4*>(to + 8 * (4 * group + (static_cast<int>(threadIdx.x) & 3))),
                 uint4{words[0], words[1], words[2], words[3]});
        }
      }
    }
  }

  const BackwardChunk& chunk_;
  Shared& shared_;
  const int warpgroup_;
  RingPlace<Shape::kStages> place_;
  int buffer_ = 0;
  std::uint32_t gradients_parity_ = 0;
};

}  // namespace moba::cuda
