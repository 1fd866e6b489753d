// The warpgroup of the products of attend_backward that takes items and gathers their rows of q and dO.
#pragma once

#include <cstring>

#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/device/thread.cuh"
#include "cuda/sm90/backward.h"
#include "cuda/sm90/backward_move.cuh"
#include "cuda/sm90/backward_shared.cuh"
#include "cuda/sm90/backward_tiles.cuh"

namespace moba::cuda {

/// 8 bytes from device to shared memory.
__device__ __forceinline__ void copy_8_async(std::uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared), "l"(global) : "memory");
}

/// Row numbers of the gathering warpgroup's tile in its lanes, and its copies into a stage.
template <class T, int kDim>
class Gatherer {
 public:
  using Shape = BackwardShape<kDim>;
  using Shared = BackwardShared<kDim, false>;
  using Rows = GatheredRows<kDim>;
  static constexpr int kWarpRows = Rows::kWarpRows, kRowsAtOnce = Rows::kRowsAtOnce, kTurn = Rows::kTurn;
  static constexpr int kChunks = kDim / 8;  // 16-byte pieces of a row

  __device__ Gatherer(const BackwardChunk& chunk, Shared& shared)
      : chunk_(chunk),
        shared_(shared),
        mover_(chunk, shared),
        row_places_(static_cast<std::uint32_t>(chunk.kv_heads * chunk.group) *
                    static_cast<std::uint32_t>((chunk.budget + 1) * chunk.unit_tiles)) {}

  __device__ void run() {
    claim_item();
    prepare_item();
    while (index_ >= 0) run_item(index_, item_of(words_));
    shared_.empty[place_.stage].wait(place_.parity ^ 1u);
    if (threadIdx.x == 0) shared_.headers[place_.stage] = {-1, 0};
    shared_.full[place_.stage].arrive();
    shared_.full[place_.stage].arrive();
    mover_.drain(0);
  }

 private:
  static constexpr int kGatherBarrier = 1;
  static constexpr unsigned kAll = 0xffffffffu;
  static constexpr int kItemWords = sizeof(BackwardItem) / 4;

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) & 31; }

  // An item is claimed, and what it is about brought, while the last tiles of the one before are gathered; no earlier,
  // because an item that waits here is one that no other thread block can take.
  static constexpr int kClaimTiles = 4, kPrepareTiles = 2;

  __device__ __forceinline__ void claim_item() {
    if (threadIdx.x == 0) claimed_ = atomicAdd(&chunk_.counters[kNextItem], 1);
  }
  /// All gathering threads together. -1: no more items.
  __device__ __forceinline__ void prepare_item() {
    named_sync(kGatherBarrier, 128);  // everyone has read the number before
    if (threadIdx.x == 0) shared_.next_item = claimed_ < chunk_.counters[kItemCount] ? claimed_ : -1;
    named_sync(kGatherBarrier, 128);
    index_ = uniform(shared_.next_item);
    words_ = 0;
    if (index_ >= 0 && lane() < kItemWords) {
      words_ = reinterpret_cast<const std::uint32_t*>(chunk_.items + index_)[lane()];
    }
  }
  static __device__ __forceinline__ BackwardItem item_of(std::uint32_t word) {
    std::uint32_t words[kItemWords];
#pragma unroll
    for (int i = 0; i < kItemWords; ++i) words[i] = __shfl_sync(kAll, word, i);
    BackwardItem item;
    memcpy(&item, words, sizeof(item));
    return item;
  }

  /// Rows of one query head: own ones, then those of entries.
  struct HeadRows {
    int head;
    int own_tiles;
    const std::uint32_t* entries;
    int listed;
  };

  static __device__ __forceinline__ std::uint32_t entry_of(const HeadRows& rows, int tile) {
    const int at = (tile - rows.own_tiles) * Shape::kRows + Rows::of_lane();
    return lane() < kWarpRows && tile >= rows.own_tiles && at < rows.listed ? rows.entries[at] : 0;
  }

  __device__ __forceinline__ void run_item(int index, const BackwardItem& item) {
    const KeyUnit& unit = item.unit;
    HeadRows rows{unit.kv_head * chunk_.group, (unit.own_rows + Shape::kRows - 1) / Shape::kRows,
                  chunk_.entries + item.listed_begin, item.listed_count};
    if (item.tiles == 0) rows.own_tiles = 1;  // a unit without rows has a single tile of none
    int tile = item.first_tile, left = max(item.tiles, 1), flags = kFirstTile;
    const int claim_at = min(kClaimTiles, left), prepare_at = min(kPrepareTiles, left);
    for (;;) {
      const int tiles = rows.own_tiles + (rows.listed + Shape::kRows - 1) / Shape::kRows;
      std::uint32_t entry = entry_of(rows, tile);
      for (; tile < tiles && left > 0; ++tile) {
        if (left == claim_at) claim_item();
        if (left == prepare_at) prepare_item();
        --left;
        load_tile(index, unit, rows, tile, flags | (left == 0 ? kLastTile : 0), entry);
        flags = 0;
      }
      if (left == 0) return;
      tile = max(tile - tiles, 0);
      ++rows.head;
      const ListedRows listed(chunk_, unit, rows.head);
      rows.entries = chunk_.entries + listed.begin;
      rows.listed = uniform(static_cast<int>(listed.count));
    }
  }

  /// `entry`: of each lane's row, of listed ones; then that of the next tile.
  __device__ __forceinline__ void load_tile(int item, const KeyUnit& unit, const HeadRows& rows, int tile, int flags,
                                            std::uint32_t& entry) {
    const bool own = tile < rows.own_tiles;
    const int at = Rows::of_lane(), first = (own ? tile : tile - rows.own_tiles) * Shape::kRows;
    const int count = (own ? unit.own_rows : rows.listed) - first;
    const bool valid = lane() < kWarpRows && at < count;
    std::uint32_t row = 0, place = kNoPlace;  // the row from chunk.first_row
    if (valid) {
      row = own ? static_cast<std::uint32_t>(unit.own_row + first + at) : entry >> kSlotBits;
      const std::uint32_t slot = own ? static_cast<std::uint32_t>(chunk_.budget) : entry & ((1u << kSlotBits) - 1);
      const std::uint32_t head = static_cast<std::uint32_t>(rows.head - chunk_.first_kv_head * chunk_.group);
      place = row * row_places_ +
              (head * static_cast<std::uint32_t>(chunk_.budget + 1) + slot) *
                  static_cast<std::uint32_t>(chunk_.unit_tiles) +
              static_cast<std::uint32_t>(unit.part_of_block);
    }
    const int diagonal = own ? unit.own_key + first : kUnitKeys;  // the key at which the first row stands
    const bool masked = unit.keys < kUnitKeys || (own && count > 0 && diagonal < kUnitKeys - 1);
    const int stage = place_.stage;
    shared_.empty[stage].wait(place_.parity ^ 1u);
    // Not before those of this tile have been used: two such loads under way would be waited for together.
    entry = entry_of(rows, tile + 1);
    if (count >= Shape::kRows) {
      copy_rows<true>(rows.head, row, kAll, shared_.stages[stage]);
    } else {
      copy_rows<false>(rows.head, row, __ballot_sync(kAll, valid), shared_.stages[stage]);
    }
    // The terms are copied too, so that this warpgroup waits for nothing but entries, which it asked for a tile ago.
    RowTerm* term = &shared_.terms[stage][at];
    if (valid) {
      copy_8_async(shared_address(term),
                   chunk_.terms + static_cast<std::int64_t>(rows.head) * chunk_.total_rows + chunk_.first_row + row);
    } else if (lane() < kWarpRows) {
      *term = {-minus_infinity(), 0.0f};
    }
    shared_.full[stage].arrive_after_copies();
    if (masked && lane() < kWarpRows) {
      shared_.last_keys[stage][at] = min(own ? min(diagonal + at, kUnitKeys) : kUnitKeys, unit.keys - 1);
    }
    if (threadIdx.x == 0) shared_.headers[stage] = {item, flags | (masked ? kMaskedTile : 0)};
    shared_.full[stage].arrive();
    place_.advance();
    // Before the consumers give the keys back they need room for dq of the tile before.
    mover_.drain(flags & kFirstTile ? 1 : 2);
    mover_.add(place);
    if (flags & kFirstTile) load_keys(unit);
  }

  /// Rows of q and dO, of a head; `valid`: a bit for each lane whose row there is, zeros for the others.
  template <bool kFull>
  __device__ __forceinline__ void copy_rows(int head, std::uint32_t row, unsigned valid,
                                            BackwardStage<kDim>& stage) const {
    const int chunk = lane() % kChunks, sub_row = lane() / kChunks;
    const char* q = first_of(chunk_.q, head) + chunk * 16;
    const char* dout = first_of(chunk_.dout, head) + chunk * 16;
    std::uint32_t q_stride = static_cast<std::uint32_t>(chunk_.q.token_stride) * 2;
    std::uint32_t dout_stride = static_cast<std::uint32_t>(chunk_.dout.token_stride) * 2;
    // Opaque, for one instruction an address: the compiler would take pointers apart and widen the strides.
    asm volatile("" : "+l"(q), "+l"(dout), "+r"(q_stride), "+r"(dout_stride));
    const std::uint32_t offset =
        swizzled_offset(Shape::kRows, (static_cast<int>(threadIdx.x) >> 5) * kRowsAtOnce + sub_row, chunk);
    const std::uint32_t to_q = shared_address(stage.q) + offset, to_dout = shared_address(stage.dout) + offset;
#pragma unroll
    for (int i = 0; i < kWarpRows / kRowsAtOnce; ++i) {
      const int source = i * kRowsAtOnce + sub_row;
      const std::uint32_t from = __shfl_sync(kAll, row, source);
      const bool copied = kFull || (valid >> source & 1u);
      copy_16_async(to_q + i * kTurn * kPanelRowBytes, q + static_cast<std::uint64_t>(from) * q_stride, copied);
      copy_16_async(to_dout + i * kTurn * kPanelRowBytes, dout + static_cast<std::uint64_t>(from) * dout_stride,
                    copied);
    }
  }
  __device__ __forceinline__ const char* first_of(const RowsOf& tensor, int head) const {
    return static_cast<const char*>(tensor.data) +
           (chunk_.first_row * tensor.token_stride + head * tensor.head_stride) * 2;
  }

  /// Keys and values of the unit; zeros after the last, so that nothing of another block can spoil a product.
  __device__ void load_keys(const KeyUnit& unit) {
    shared_.keys_empty.wait(keys_parity_ ^ 1u);
    const int thread = thread_again();
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
  Shared& shared_;
  RowMover<T, kDim> mover_;
  const std::uint32_t row_places_;  // places of a row of all heads
  std::int32_t claimed_ = 0;        // the next item, of thread 0
  // The next item and, in each lane, a word of it.
  std::int32_t index_ = -1;
  std::uint32_t words_ = 0;
  RingPlace<Shape::kStages> place_;
  std::uint32_t keys_parity_ = 0;
};

}  // namespace moba::cuda
