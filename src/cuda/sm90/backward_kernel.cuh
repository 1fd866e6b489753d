// The products of attend_backward: a persistent kernel, one warpgroup that gathers and two that multiply.
//
// For a unit of 128 keys and each tile of R query rows (64 keys of the unit a warpgroup):
//   S^T = K Q^T, dP^T = V dO^T       [64 keys, R]   accumulators
//   P = exp2(S - lse), dS = P (dP - bias)            in registers, so they are the left operands of
//   dV += P^T dO, dK += dS^T Q       [64 keys, D]   accumulators for the life of the item
//   dQ = dS K                        [R, D]          dS through shared memory; R / 64 or D / 64 of it a warpgroup
// The sums over keys of dQ are complete for the unit's 128 keys; they go to the place of (row, head, slot, unit of the
// block), rounded to T, so that nothing is added out of order.
#pragma once

#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/quad.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/sm90/backward.h"
#include "cuda/sm90/backward_tiles.cuh"

namespace moba::cuda {

template <int kDim>
struct BackwardShape {
  static constexpr int kRows = tile_rows_of(kDim);
  static constexpr int kStages = 3;
  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kRowPanels = kRows / 64;
};

/// What consumers need to know of each row of a tile.
struct TileHeader {
  std::int32_t item;   // its index; -1: no more work
  std::int32_t flags;  // of TileFlag
  std::int32_t keys;   // of the unit
  std::int32_t unused;
};
enum TileFlag { kFirstTile = 1, kLastTile = 2, kMaskedTile = 4 };

inline constexpr std::uint32_t kNoPlace = 0xffffffffu;

template <int kDim>
struct BackwardStage {
  using Shape = BackwardShape<kDim>;
  alignas(1024) std::uint16_t q[Shape::kRows * kDim];
  alignas(1024) std::uint16_t dout[Shape::kRows * kDim];
};

template <int kDim>
struct BackwardShared {
  using Shape = BackwardShape<kDim>;
  alignas(1024) std::uint16_t k[kUnitKeys * kDim];
  alignas(1024) std::uint16_t v[kUnitKeys * kDim];
  BackwardStage<kDim> stages[Shape::kStages];
  // dS^T: R / 64 panels of [128 keys, 64 rows]. Two, so that one barrier a tile is enough.
  alignas(1024) std::uint16_t slopes[2][kUnitKeys * Shape::kRows];
  alignas(16) RowTerm terms[Shape::kStages][Shape::kRows];
  alignas(16) std::int32_t last_keys[Shape::kStages][Shape::kRows];  // the last key of the unit that the row sees
  alignas(16) std::uint32_t places[Shape::kStages][Shape::kRows];    // in partials, in rows of D; kNoPlace
  TileHeader headers[Shape::kStages];
  Barrier full[Shape::kStages], empty[Shape::kStages];
  Barrier keys_full, keys_empty;
  std::int32_t next_item;
};

/// 8 bytes from device to shared memory.
__device__ __forceinline__ void copy_8_async(std::uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared), "l"(global) : "memory");
}

/// Row numbers of the gathering warpgroup's tile in its lanes, and its copies into a stage.
template <class T, int kDim>
class Gatherer {
 public:
  using Shape = BackwardShape<kDim>;
  static constexpr int kWarpRows = Shape::kRows / 4;
  static constexpr int kChunks = kDim / 8;  // 16-byte pieces of a row
  static constexpr int kRowsAtOnce = 32 / kChunks;
  // The four warps take turns of kRowsAtOnce rows, so that a lane's rows are a multiple of 8 apart: one swizzle for
  // all.
  static constexpr int kTurn = 4 * kRowsAtOnce;
  static_assert(kTurn % 8 == 0);

  __device__ Gatherer(const BackwardChunk& chunk, BackwardShared<kDim>& shared) : chunk_(chunk), shared_(shared) {}

  __device__ void run() {
    const int thread = static_cast<int>(threadIdx.x);
    const int items = chunk_.counters[kItemCount];
    for (;;) {
      named_sync(kGatherBarrier, 128);  // everyone has read the last item
      if (thread == 0) shared_.next_item = atomicAdd(&chunk_.counters[kNextItem], 1);
      named_sync(kGatherBarrier, 128);
      const int item = shared_.next_item;
      if (item >= items) break;
      run_item(item);
    }
    shared_.empty[place_.stage].wait(place_.parity ^ 1u);
    if (thread == 0) shared_.headers[place_.stage] = {-1, 0, 0, 0};
    shared_.full[place_.stage].arrive();
    shared_.full[place_.stage].arrive();
  }

 private:
  static constexpr int kGatherBarrier = 1;

  __device__ void run_item(int index) {
    const BackwardItem item = chunk_.items[index];
    const Unit unit(chunk_, item.unit);
    // One place in the code that loads a tile: a unit without rows has a single tile of none.
    int skip = item.first_tile, left = max(item.tiles, 1), flags = kFirstTile;
    for (int segment = 0; left > 0; ++segment) {
      const int head = unit.kv_head * chunk_.group + (segment >> 1);
      const bool own = (segment & 1) == 0;
      const ListedRows listed(chunk_, unit, head);
      const int count = own ? unit.own_rows : static_cast<int>(listed.count);
      const int tiles = item.tiles == 0 ? 1 : (count + Shape::kRows - 1) / Shape::kRows;
      const std::int64_t begin = own ? unit.own_row : listed.begin;
      std::uint32_t entry = own ? 0 : entry_of(begin, count, skip);
      for (; skip < tiles && left > 0; ++skip) {
        --left;
        const std::uint32_t next = own ? 0 : entry_of(begin, count, skip + 1);  // on its way while this tile is copied
        load_tile(index, unit, head, own, begin + skip * Shape::kRows, count - skip * Shape::kRows, entry,
                  flags | (left == 0 ? kLastTile : 0));
        entry = next;
        flags = 0;
      }
      skip = max(skip - tiles, 0);
    }
  }

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) & 31; }
  /// The row of a tile that a lane below kWarpRows looks after.
  static __device__ __forceinline__ int row_of_lane() {
    const int warp = static_cast<int>(threadIdx.x) >> 5;
    return lane() / kRowsAtOnce * kTurn + warp * kRowsAtOnce + lane() % kRowsAtOnce;
  }

  __device__ __forceinline__ std::uint32_t entry_of(std::int64_t begin, int count, int tile) const {
    const int at = tile * Shape::kRows + row_of_lane();
    return lane() < kWarpRows && at < count ? chunk_.entries[begin + at] : 0;
  }

  /// `count` rows: own ones [begin, …) by packed row from chunk.first_row, or those of the entries [begin, …), of which
  /// each lane holds the one of its row.
  __device__ __forceinline__ void load_tile(int item, const Unit& unit, int head, bool own, std::int64_t begin,
                                            int count, std::uint32_t entry, int flags) {
    const int at = row_of_lane();
    int row = -1;  // from chunk.first_row
    std::uint32_t place = kNoPlace;
    int last_key = kUnitKeys;
    if (lane() < kWarpRows && at < count) {
      int slot = chunk_.budget;
      if (own) {
        row = static_cast<int>(begin) + at;
        last_key = static_cast<int>(min(unit.key_of(row), std::int64_t{kUnitKeys}));
      } else {
        row = static_cast<int>(entry >> kSlotBits);
        slot = static_cast<int>(entry & ((1u << kSlotBits) - 1));
      }
      const std::uint32_t heads = static_cast<std::uint32_t>(chunk_.kv_heads * chunk_.group);
      const std::uint32_t list = static_cast<std::uint32_t>(row) * heads +
                                 static_cast<std::uint32_t>(head - chunk_.first_kv_head * chunk_.group);
      place = (list * static_cast<std::uint32_t>(chunk_.budget + 1) + static_cast<std::uint32_t>(slot)) *
                  static_cast<std::uint32_t>(chunk_.unit_tiles) +
              static_cast<std::uint32_t>(unit.part_of_block);
    }
    const bool masked = unit.keys < kUnitKeys || (own && count > 0 && unit.key_of(begin) < kUnitKeys - 1);
    const int stage = place_.stage;
    shared_.empty[stage].wait(place_.parity ^ 1u);
    copy_rows(chunk_.q, head, row, shared_.stages[stage].q);
    copy_rows(chunk_.dout, head, row, shared_.stages[stage].dout);
    // The terms are copied too, so that this warpgroup waits for nothing but entries, which it asked for a tile ago.
    RowTerm* term = &shared_.terms[stage][at];
    if (row >= 0) {
      copy_8_async(shared_address(term),
                   chunk_.terms + static_cast<std::int64_t>(head) * chunk_.total_rows + chunk_.first_row + row);
    } else if (lane() < kWarpRows) {
      *term = {-minus_infinity(), 0.0f};
    }
    shared_.full[stage].arrive_after_copies();
    if (lane() < kWarpRows) {
      shared_.places[stage][at] = place;
      shared_.last_keys[stage][at] = min(last_key, unit.keys - 1);
    }
    if (threadIdx.x == 0) shared_.headers[stage] = {item, flags | (masked ? kMaskedTile : 0), unit.keys, 0};
    shared_.full[stage].arrive();
    place_.advance();
    if (flags & kFirstTile) load_keys(unit);
  }

  __device__ __forceinline__ void copy_rows(const RowsOf& tensor, int head, int row, std::uint16_t* tile) const {
    const int chunk = lane() % kChunks, sub_row = lane() / kChunks, warp = static_cast<int>(threadIdx.x) >> 5;
    const char* base = static_cast<const char*>(tensor.data) +
                       (chunk_.first_row * tensor.token_stride + head * tensor.head_stride + chunk * 8) * 2;
    const std::uint32_t stride = static_cast<std::uint32_t>(tensor.token_stride) * 2;
    const std::uint32_t shared =
        shared_address(tile) + swizzled_offset(Shape::kRows, warp * kRowsAtOnce + sub_row, chunk);
#pragma unroll
    for (int i = 0; i < kWarpRows / kRowsAtOnce; ++i) {
      const int source = __shfl_sync(0xffffffffu, row, i * kRowsAtOnce + sub_row);
      copy_16_async(shared + i * kTurn * kPanelRowBytes,
                    base + static_cast<std::uint64_t>(static_cast<std::uint32_t>(max(source, 0))) * stride,
                    source >= 0);
    }
  }

  /// Keys and values of the unit; zeros after the last, so that nothing of another block can spoil a product.
  __device__ void load_keys(const Unit& unit) {
    shared_.keys_empty.wait(keys_parity_ ^ 1u);
    const int thread = static_cast<int>(threadIdx.x);
    const int chunk = thread % kChunks;
    const T* k = static_cast<const T*>(chunk_.k.data) + unit.first_key * chunk_.k.token_stride +
                 unit.kv_head * chunk_.k.head_stride + chunk * 8;
    const T* v = static_cast<const T*>(chunk_.v.data) + unit.first_key * chunk_.v.token_stride +
                 unit.kv_head * chunk_.v.head_stride + chunk * 8;
    const std::uint32_t shared_k = shared_address(shared_.k), shared_v = shared_address(shared_.v);
#pragma unroll 4
    for (int key = thread / kChunks; key < kUnitKeys; key += 128 / kChunks) {
      const bool valid = key < unit.keys;
      const int source = valid ? key : 0, offset = swizzled_offset(kUnitKeys, key, chunk);
      copy_16_async(shared_k + offset, k + source * chunk_.k.token_stride, valid);
      copy_16_async(shared_v + offset, v + source * chunk_.v.token_stride, valid);
    }
    shared_.keys_full.arrive_after_copies();
    keys_parity_ ^= 1u;
  }

  const BackwardChunk& chunk_;
  BackwardShared<kDim>& shared_;
  RingPlace<Shape::kStages> place_;
  std::uint32_t keys_parity_ = 0;
};

/// One of the two multiplying warpgroups: keys [64 * warpgroup, 64 * warpgroup + 64) of the unit.
template <class T, int kDim>
class Multiplier {
 public:
  using Shape = BackwardShape<kDim>;
  static constexpr int kRows = Shape::kRows;
  static constexpr int kSlopeBarrier = 2;

  __device__ Multiplier(const BackwardChunk& chunk, BackwardShared<kDim>& shared, int warpgroup)
      : chunk_(chunk), shared_(shared), warpgroup_(warpgroup) {}

  __device__ void run() {
    float dk[kDim / 2], dv[kDim / 2];
    RingPlace<Shape::kStages> place;
    std::uint32_t keys_parity = 0;
    int buffer = 0;
    QueryGradients pending;
    for (;;) {
      shared_.full[place.stage].wait(place.parity);
      const TileHeader header = shared_.headers[place.stage];
      if (header.item < 0) break;
      if (header.flags & kFirstTile) {
        shared_.keys_full.wait(keys_parity);
        keys_parity ^= 1u;
      }
      fence_async_proxy();  // cp.async wrote the operands as ordinary stores
      multiply(place.stage, buffer, header.flags & kFirstTile, header.flags & kMaskedTile, dk, dv, pending);
      buffer ^= 1;
      place.advance();
      if (header.flags & kLastTile) {
        shared_.keys_empty.arrive();
        pending.store(chunk_, column_of_slab());
        pending.places[0] = pending.places[1] = kNoPlace;
        store_sums(header, dk, dv);
      }
    }
  }

 private:
  /// 64 columns of dq of a tile, rounded: words[2 * j + i] is of row i of the thread and columns 8 * j + 2 * (lane %
  /// 4). They are stored while the next tile's products run.
  struct QueryGradients {
    std::uint32_t words[16];
    std::uint32_t places[2] = {kNoPlace, kNoPlace};

    __device__ __forceinline__ void store(const BackwardChunk& chunk, int column) const {
      T* partials = static_cast<T*>(chunk.partials) + column + 8 * (static_cast<int>(threadIdx.x) & 3);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int group = 0; group < 2; ++group) {
          std::uint32_t out[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) out[j] = words[2 * (4 * group + j) + i];
          quad_transpose(out);
          if (places[i] != kNoPlace) {
            __stcs(reinterpret_cast<uint4*>(partials + static_cast<std::uint64_t>(places[i]) * kDim + 32 * group),
                   make_uint4(out[0], out[1], out[2], out[3]));
          }
        }
      }
    }
  };

  __device__ __forceinline__ void multiply(int stage, int buffer, bool first, bool masked, float (&dk)[kDim / 2],
                                           float (&dv)[kDim / 2], QueryGradients& pending) {
    const BackwardStage<kDim>& tile = shared_.stages[stage];
    const int thread = thread_again(), lane = thread & 31, warp = thread >> 5 & 3;
    const int first_key = warpgroup_ * 64;
    float p[kRows / 2], ds[kRows / 2];
    hold_registers(dk);
    hold_registers(dv);
    wgmma_fence();
    wgmma_tiles<T, kRows, kDim / 16, Major::K, Major::K>(p, tile_descriptor<Major::K>(shared_.k, kUnitKeys, first_key),
                                                         kUnitKeys, tile_descriptor<Major::K>(tile.q, kRows), kRows,
                                                         false);
    wgmma_commit();
    wgmma_tiles<T, kRows, kDim / 16, Major::K, Major::K>(ds, tile_descriptor<Major::K>(shared_.v, kUnitKeys, first_key),
                                                         kUnitKeys, tile_descriptor<Major::K>(tile.dout, kRows), kRows,
                                                         false);
    wgmma_commit();
    pending.store(chunk_, column_of_slab());  // of the tile before, under the products of this one
    wgmma_wait<1>();
    hold_registers(p);

    const int column = 2 * (lane & 3), key = first_key + warp * 16 + (lane >> 2);
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
      const float4 terms = *reinterpret_cast<const float4*>(&shared_.terms[stage][8 * j + column]);
      p[4 * j] = exp2_fast(fmaf(p[4 * j], chunk_.softmax_scale * kLog2E, -terms.x));
      p[4 * j + 1] = exp2_fast(fmaf(p[4 * j + 1], chunk_.softmax_scale * kLog2E, -terms.z));
      p[4 * j + 2] = exp2_fast(fmaf(p[4 * j + 2], chunk_.softmax_scale * kLog2E, -terms.x));
      p[4 * j + 3] = exp2_fast(fmaf(p[4 * j + 3], chunk_.softmax_scale * kLog2E, -terms.z));
    }
    // Masked before dP is waited for: the branch also keeps the exponentials under the product of dP, from which the
    // compiler would move them away.
    if (masked) mask(p, stage, key, column);
    wgmma_wait<0>();
    hold_registers(ds);
    std::uint32_t p_packed[kRows / 4], ds_packed[kRows / 4];
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
      const float4 terms = *reinterpret_cast<const float4*>(&shared_.terms[stage][8 * j + column]);
      ds[4 * j] = p[4 * j] * (ds[4 * j] - terms.y);
      ds[4 * j + 1] = p[4 * j + 1] * (ds[4 * j + 1] - terms.w);
      ds[4 * j + 2] = p[4 * j + 2] * (ds[4 * j + 2] - terms.y);
      ds[4 * j + 3] = p[4 * j + 3] * (ds[4 * j + 3] - terms.w);
    }
    if (masked) mask(ds, stage, key, column);
    pack_rows<T, kRows>(p_packed, p);
    pack_rows<T, kRows>(ds_packed, ds);
    hold_registers(p_packed);
    hold_registers(ds_packed);
    wgmma_fence();
    wgmma_tiles<T, kDim, kRows / 16, Major::MN>(dv, p_packed, tile_descriptor<Major::MN>(tile.dout, kRows), kRows,
                                                !first);
    wgmma_commit();
    store_slopes(buffer, lane, warp, ds_packed);
    wgmma_tiles<T, kDim, kRows / 16, Major::MN>(dk, ds_packed, tile_descriptor<Major::MN>(tile.q, kRows), kRows,
                                                !first);
    wgmma_commit();
    fence_async_proxy();
    named_sync(kSlopeBarrier, 256);

    // dQ: rows [64 * warpgroup, …) where the tile has 128, else columns [64 * warpgroup, …) of its 64 rows.
    constexpr bool kByRows = Shape::kRowPanels == 2;
    float dq[32];
    const std::uint16_t* slopes = shared_.slopes[buffer] + (kByRows ? warpgroup_ * kUnitKeys * 64 : 0);
    const std::uint16_t* keys = shared_.k + (kByRows ? 0 : warpgroup_ * kUnitKeys * 64);
    wgmma_fence();
    wgmma_tiles<T, 64, kUnitKeys / 16, Major::MN, Major::MN>(dq, tile_descriptor<Major::MN>(slopes, kUnitKeys),
                                                             kUnitKeys, tile_descriptor<Major::MN>(keys, kUnitKeys),
                                                             kUnitKeys, false);
    wgmma_commit();
    wgmma_wait<0>();
    hold_registers(dk);
    hold_registers(dv);
    hold_registers(dq);
    const int row = (kByRows ? warpgroup_ * 64 : 0) + warp * 16 + (lane >> 2);
    pending.places[0] = shared_.places[stage][row];
    pending.places[1] = shared_.places[stage][row + 8];
    shared_.empty[stage].arrive();
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      pending.words[i] = pack<T>(dq[2 * i] * chunk_.softmax_scale, dq[2 * i + 1] * chunk_.softmax_scale);
    }
  }

  /// The first column of the warpgroup's dq.
  __device__ __forceinline__ int column_of_slab() const {
    return Shape::kRowPanels == 2 ? 0 : warpgroup_ * 64;
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
      asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(ds[4 * step]),
                   "r"(ds[4 * step + 1]), "r"(ds[4 * step + 2]), "r"(ds[4 * step + 3])
                   : "memory");
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
      store_floats<false>(dk, slab + key * kDim, kDim, key, header.keys);
      store_floats<false>(dv, slab + (kUnitKeys + key) * kDim, kDim, key, header.keys);
      return;
    }
    const Unit unit(chunk_, item.unit);
    const std::int64_t first = unit.first_key + key;
    if (chunk_.sums != nullptr) {
      const std::int64_t kv_head = unit.kv_head - chunk_.first_kv_head;
      float* sum = chunk_.sums + (kv_head * chunk_.total_keys + first) * kDim;
      store_floats<true>(dk, sum, kDim, key, header.keys);
      store_floats<true>(dv, sum + chunk_.kv_heads * chunk_.total_keys * kDim, kDim, key, header.keys);
    } else {
      store_rounded(dk, chunk_.dk, first, unit.kv_head, key, header.keys);
      store_rounded(dv, chunk_.dv, first, unit.kv_head, key, header.keys);
    }
  }

  /// Rows `key` and key + 8 of an accumulator to `to` and 8 rows further; added to what is there where kAdd.
  template <bool kAdd>
  __device__ __forceinline__ void store_floats(const float (&sums)[kDim / 2], float* to, int stride, int key,
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

  __device__ __forceinline__ void store_rounded(const float (&sums)[kDim / 2], const RowsOf& tensor, std::int64_t first,
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
          *reinterpret_cast<uint4*>(to + 8 * (4 * group + (static_cast<int>(threadIdx.x) & 3))) = {words[0], words[1],
                                                                                                   words[2], words[3]};
        }
      }
    }
  }

  const BackwardChunk& chunk_;
  BackwardShared<kDim>& shared_;
  const int warpgroup_;
};

template <class T, int kDim>
__global__ void __launch_bounds__(BackwardShape<kDim>::kThreads, 1)
    backward_products_kernel(const __grid_constant__ BackwardChunk chunk) {
  using Shape = BackwardShape<kDim>;
  extern __shared__ char memory[];
  auto& shared = *reinterpret_cast<BackwardShared<kDim>*>((reinterpret_cast<std::uintptr_t>(memory) + 1023) &
                                                          ~std::uintptr_t{1023});
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      shared.full[stage].init(2 * 128);  // each gathering thread: once for its stores, once for its copies
      shared.empty[stage].init(128 * Shape::kConsumers);
    }
    shared.keys_full.init(128);
    shared.keys_empty.init(128 * Shape::kConsumers);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<40>();
    Gatherer<T, kDim>(chunk, shared).run();
  } else {
    take_registers<232>();
    Multiplier<T, kDim>(chunk, shared, static_cast<int>(threadIdx.x) / 128 - 1).run();
  }
}

}  // namespace moba::cuda
