// The warpgroups of the products of attend_backward that multiply: keys [64 * warpgroup, 64 * warpgroup + 64) of the
// unit.
#pragma once

#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/quad.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/device/thread.cuh"
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
    float dk[kDim / 2], dv[kDim / 2], p[kRows / 2];
    if (warpgroup_ == 1) named_arrive(kCoreBarriers, 256);
    shared_.full[0].wait(0);
    TileHeader header = shared_.headers[0];
    while (header.item >= 0) {
      if (header.flags & kFirstTile) first_scores(p, header.flags);
      header = run_tile(header, p, dk, dv);
    }
    if (warpgroup_ == 0) named_sync(kCoreBarriers, 256);
  }

 private:
  // Named barriers, the first of two: one for each warpgroup that waits.
  static constexpr int kCoreBarriers = 2;        // for its turn at the tensor cores
  static constexpr int kLastSlopesBarriers = 4;  // for the other's slopes of an item's last tile

  __device__ __forceinline__ void first_scores(float (&p)[kRows / 2], int flags) {
    shared_.keys_full.wait(keys_parity_);
    keys_parity_ ^= 1u;
    fence_async_proxy();      // cp.async wrote the operands as ordinary stores
    float scores[kRows / 2];  // not p: with two places that multiply into it D = 64 spills
    multiply_scores(scores);
    wgmma_wait<0>();
    hold_registers(scores);
    exponentials(scores, flags);
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) p[i] = scores[i];
  }

  /// From P of a tile to that of the next, whose header is the result. After dP and dS, four products follow each
  /// other: dQ of the tile before, dV and dK of this one, S of the next. The warpgroups take turns at these, so that
  /// one multiplies while the other computes; what one has stored before it gave the turn away, the other may read.
  __device__ __forceinline__ TileHeader run_tile(const TileHeader& header, float (&p)[kRows / 2], float (&dk)[kDim / 2],
                                                 float (&dv)[kDim / 2]) {
    const bool first = header.flags & kFirstTile;
    const BackwardStage<kDim>& tile = shared_.stages[place_.stage];
    std::uint32_t p_packed[kRows / 4], ds_packed[kRows / 4];
    multiply_slopes(tile, header.flags, p, p_packed, ds_packed);
    shared_.slopes_empty[buffer_].wait(slopes_parity_ ^ 1u);
    store_slopes(ds_packed);
    place_.advance();
    shared_.full[place_.stage].wait(place_.parity);
    const TileHeader next = shared_.headers[place_.stage];
    // Of the slopes, and of the next tile, which cp.async wrote as ordinary stores.
    fence_async_proxy();
    if (header.flags & kLastTile) named_arrive(kLastSlopesBarriers + (warpgroup_ ^ 1), 256);

    named_sync(kCoreBarriers + warpgroup_, 256);
    float dq[32];
    multiply_queries(buffer_ ^ 1, dq);  // of anything for an item's first tile, and not stored
    wgmma_fence();
    wgmma_tiles<T, kDim, kRows / 16, Major::MN>(dv, p_packed, tile_descriptor<Major::MN>(tile.dout, kRows), kRows,
                                                !first);
    wgmma_commit();
    wgmma_wait<1>();
    hold_registers(dq);
    if (!first) give_queries(buffer_ ^ 1, dq);
    wgmma_fence();
    // Both operands from shared memory: there are no registers for dS beside dQ and the next S.
    wgmma_tiles<T, kDim, kRows / 16, Major::K, Major::MN>(
        dk, tile_descriptor<Major::K>(shared_.slopes[buffer_], kUnitKeys, warpgroup_ * 64), kUnitKeys,
        tile_descriptor<Major::MN>(tile.q, kRows), kRows, !first);
    wgmma_commit();
    wgmma_wait<1>();
    hold_registers(dv);
    multiply_scores(p);  // with other keys than its own for another item's first tile, and made again
    named_arrive(kCoreBarriers + (warpgroup_ ^ 1), 256);
    wgmma_wait<1>();
    hold_registers(dk);
    __syncwarp();
    arrive_by_one(shared_.empty[place_.stage == 0 ? Shape::kStages - 1 : place_.stage - 1]);
    wgmma_wait<0>();
    hold_registers(p);
    if (header.flags & kLastTile) {
      named_sync(kLastSlopesBarriers + warpgroup_, 256);
      multiply_queries(buffer_, dq);
      wgmma_wait<0>();
      hold_registers(dq);
      __syncwarp();
      arrive_by_one(shared_.keys_empty);
      give_queries(buffer_, dq);
      store_sums(header, dk, dv);
    } else {
      exponentials(p, next.flags);
    }
    buffer_ ^= 1;
    if (buffer_ == 0) slopes_parity_ ^= 1u;
    return next;
  }

  /// dQ of a tile to where it is moved from; the slopes that it was made of, in `buffer`, which changes with every
  /// tile, may go.
  __device__ __forceinline__ void give_queries(int buffer, const float (&dq)[32]) {
    store_queries(dq);
    if constexpr (kTurns) fence_async_proxy();  // the copy engine reads them
    __syncwarp();
    arrive_by_one(shared_.slopes_empty[buffer]);
    arrive_by_one(shared_.gradients_full[kTurns ? buffer : 0]);
  }

  /// S^T of the tile at the place in the ring.
  __device__ __forceinline__ void multiply_scores(float (&p)[kRows / 2]) const {
    wgmma_fence();
    wgmma_tiles<T, kRows, kDim / 16, Major::K, Major::K>(
        p, tile_descriptor<Major::K>(shared_.k, kUnitKeys, warpgroup_ * 64), kUnitKeys,
        tile_descriptor<Major::K>(shared_.stages[place_.stage].q, kRows), kRows, false);
    wgmma_commit();
  }

  /// P from S, of the tile at the place in the ring.
  __device__ __forceinline__ void exponentials(float (&p)[kRows / 2], int flags) const {
    const int column = 2 * (thread_again() & 3);
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
      const float4 terms = *reinterpret_cast<const float4*>(&shared_.terms[place_.stage][8 * j + column]);
      p[4 * j] = exp2_fast(fmaf(p[4 * j], chunk_.softmax_scale * kLog2E, -terms.x));
      p[4 * j + 1] = exp2_fast(fmaf(p[4 * j + 1], chunk_.softmax_scale * kLog2E, -terms.z));
      p[4 * j + 2] = exp2_fast(fmaf(p[4 * j + 2], chunk_.softmax_scale * kLog2E, -terms.x));
      p[4 * j + 3] = exp2_fast(fmaf(p[4 * j + 3], chunk_.softmax_scale * kLog2E, -terms.z));
    }
    if (flags & kMaskedTile) mask(p);
  }

  /// P and dS^T, rounded, from P of the tile at the place in the ring.
  __device__ __forceinline__ void multiply_slopes(const BackwardStage<kDim>& tile, int flags, float (&p)[kRows / 2],
                                                  std::uint32_t (&p_packed)[kRows / 4],
                                                  std::uint32_t (&ds_packed)[kRows / 4]) const {
    float ds[kRows / 2];
    const int column = 2 * (thread_again() & 3);
    wgmma_fence();
    wgmma_tiles<T, kRows, kDim / 16, Major::K, Major::K>(
        ds, tile_descriptor<Major::K>(shared_.v, kUnitKeys, warpgroup_ * 64), kUnitKeys,
        tile_descriptor<Major::K>(tile.dout, kRows), kRows, false);
    wgmma_commit();
    wgmma_wait<0>();
    hold_registers(ds);
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
      const float4 terms = *reinterpret_cast<const float4*>(&shared_.terms[place_.stage][8 * j + column]);
      ds[4 * j] = p[4 * j] * (ds[4 * j] - terms.y);
      ds[4 * j + 1] = p[4 * j + 1] * (ds[4 * j + 1] - terms.w);
      ds[4 * j + 2] = p[4 * j + 2] * (ds[4 * j + 2] - terms.y);
      ds[4 * j + 3] = p[4 * j + 3] * (ds[4 * j + 3] - terms.w);
    }
    if (flags & kMaskedTile) mask(ds);
    pack_rows<T, kRows>(p_packed, p);
    hold_registers(p_packed);
    pack_rows<T, kRows>(ds_packed, ds);
    hold_registers(ds_packed);
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

  static __device__ __forceinline__ void arrive_by_one(Barrier& barrier) {
    if ((thread_again() & 31) == 0) barrier.arrive();
  }

  /// dQ, for the gathering warpgroup to move to its places.
  __device__ __forceinline__ void store_queries(const float (&dq)[32]) {
    const int thread = thread_again(), lane = thread & 31, warp = thread >> 5 & 3;
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
  __device__ __forceinline__ void mask(float (&x)[kRows / 2]) const {
    const int thread = thread_again(), lane = thread & 31, warp = thread >> 5 & 3;
    const int column = 2 * (lane & 3), key = warpgroup_ * 64 + warp * 16 + (lane >> 2);
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
      const int2 last = *reinterpret_cast<const int2*>(&shared_.last_keys[place_.stage][8 * j + column]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (key + 8 * (i >> 1) > (i & 1 ? last.y : last.x)) x[4 * j + i] = 0.0f;
      }
    }
  }

  /// dS^T as [R / 64][128 keys][64 rows], swizzled: the left operand of dQ, contiguous along the rows.
  __device__ __forceinline__ void store_slopes(const std::uint32_t (&ds)[kRows / 4]) const {
    const int thread = thread_again(), lane = thread & 31, warp = thread >> 5 & 3;
    const int key = warpgroup_ * 64 + warp * 16 + (lane & 15);
    const std::uint32_t base = shared_address(shared_.slopes[buffer_]);
#pragma unroll
    for (int step = 0; step < kRows / 16; ++step) {
      const std::uint32_t address = base + swizzled_offset(kUnitKeys, key, 2 * step + (lane >> 4));
      store_matrices(address, ds + 4 * step);
    }
  }

  __device__ __forceinline__ void store_sums(const TileHeader& header, float (&dk)[kDim / 2], float (&dv)[kDim / 2]) {
    const BackwardItem& item = chunk_.items[header.item];
    const KeyUnit& unit = item.unit;
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5 & 3;
    const int key = warpgroup_ * 64 + warp * 16 + (lane >> 2);
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) dk[i] *= chunk_.softmax_scale;
    if (item.slab >= 0) {
      float* slab = chunk_.slabs + static_cast<std::int64_t>(item.slab) * 2 * kUnitKeys * kDim;
      store_key_floats<false>(dk, slab + key * kDim, kDim, key, unit.keys);
      store_key_floats<false>(dv, slab + (kUnitKeys + key) * kDim, kDim, key, unit.keys);
      return;
    }
    const std::int64_t first = unit.first_key + key;
    if (chunk_.sums != nullptr) {
      const std::int64_t kv_head = unit.kv_head - chunk_.first_kv_head;
      float* sum = chunk_.sums + (kv_head * chunk_.total_keys + first) * kDim;
      store_key_floats<true>(dk, sum, kDim, key, unit.keys);
      store_key_floats<true>(dv, sum + chunk_.kv_heads * chunk_.total_keys * kDim, kDim, key, unit.keys);
    } else {
      store_keys(dk, chunk_.dk, first, unit.kv_head, key, unit.keys);
      store_keys(dv, chunk_.dv, first, unit.kv_head, key, unit.keys);
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
  std::uint32_t keys_parity_ = 0, gradients_parity_ = 0, slopes_parity_ = 0;
};

}  // namespace moba::cuda
