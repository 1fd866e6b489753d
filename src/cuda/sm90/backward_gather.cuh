// The warpgroup of the products of attend_backward that takes items and gathers their rows of q and dO.
#pragma once

#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/sm90/backward.h"
#include "cuda/sm90/backward_shared.cuh"
#include "cuda/sm90/backward_tiles.cuh"

namespace moba::cuda {

/// 8 bytes from device to shared memory.
__device__ __forceinline__ void copy_8_async(std::uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared), "l"(global) : "memory");
}

/// Row numbers of the gathering warpgroup's tile in its lanes, and its copies into a stage.
template <class T, int kDim, bool kTurns>
class Gatherer {
 public:
  using Shape = BackwardShape<kDim>;
  using Shared = BackwardShared<kDim, kTurns>;
  static constexpr int kWarpRows = Shape::kRows / 4;
  static constexpr int kChunks = kDim / 8;  // 16-byte pieces of a row
  static constexpr int kRowsAtOnce = 32 / kChunks;
  // The four warps take turns of kRowsAtOnce rows, so that a lane's rows are a multiple of 8 apart: one swizzle for
  // all.
  static constexpr int kTurn = 4 * kRowsAtOnce;
  static_assert(kTurn % 8 == 0);

  __device__ Gatherer(const BackwardChunk& chunk, Shared& shared) : chunk_(chunk), shared_(shared) {}

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
    drain(0);
    if constexpr (kTurns) end_turn();
    wait_bulk_stores();
  }

 private:
  static constexpr int kGatherBarrier = 1;

  __device__ void run_item(int index) {
    const BackwardItem item = chunk_.items[index];
    const Unit unit(chunk_, item.unit, Shape::kRows);
    // One place in the code that loads a tile: a unit without rows has a single tile of none.
    int skip = item.first_tile, left = max(item.tiles, 1), flags = kFirstTile;
    for (int segment = 0; left > 0; ++segment) {
      const int head = unit.kv_head * chunk_.group + (segment >> 1);
      const bool own = (segment & 1) == 0;
      const ListedRows listed(chunk_, unit, head);
      const int count = own ? unit.own_rows : static_cast<int>(listed.count);
      const int tiles = item.tiles == 0 ? 1 : (count + Shape::kRows - 1) / Shape::kRows;
      const std::int64_t begin = own ? unit.own_row : listed.begin;
      const std::uint32_t turn = kTurns ? first_turn(unit, listed, head, own) : 0;
      std::uint32_t entry = own ? 0 : entry_of(begin, count, skip);
      for (; skip < tiles && left > 0; ++skip) {
        --left;
        const std::uint32_t next = own ? 0 : entry_of(begin, count, skip + 1);  // on its way while this tile is copied
        load_tile(index, unit, head, own, begin + skip * Shape::kRows, count - skip * Shape::kRows, entry,
                  turn + skip * kTurnsOfTile, flags | (left == 0 ? kLastTile : 0));
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

  /// Where turns of this warp's rows are counted, for the first tile of the unit's own rows or of a list of a head: no
  /// two tiles have the same count, because each block of a list has at most one tile that is not full.
  __device__ __forceinline__ std::uint32_t first_turn(const Unit& unit, const ListedRows& listed, int head,
                                                      bool own) const {
    const std::uint32_t of_head = static_cast<std::uint32_t>(head - chunk_.first_kv_head * chunk_.group);
    const std::int64_t first = own ? (unit.own_row - unit.own_tile * Shape::kRows) / Shape::kRows + unit.own_tile
                                   : own_tiles_of_head(chunk_.rows, chunk_.block_rows, Shape::kRows) +
                                         (listed.begin - listed.of_list) / Shape::kRows;
    const std::int64_t heads = of_head * turns_of_head(chunk_.rows, chunk_.budget, chunk_.block_rows, Shape::kRows);
    return static_cast<std::uint32_t>((heads + first + unit.block_row) * kTurnsOfTile) + (threadIdx.x >> 5);
  }

  /// `count` rows: own ones [begin, …) by packed row from chunk.first_row, or those of the entries [begin, …), of which
  /// each lane holds the one of its row.
  __device__ __forceinline__ void load_tile(int item, const Unit& unit, int head, bool own, std::int64_t begin,
                                            int count, std::uint32_t entry, std::uint32_t turn, int flags) {
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
      place = list * static_cast<std::uint32_t>(chunk_.budget + 1) + static_cast<std::uint32_t>(slot);
      if constexpr (!kTurns) {
        place = place * static_cast<std::uint32_t>(chunk_.unit_tiles) + static_cast<std::uint32_t>(unit.part_of_block);
      }
    }
    if constexpr (kTurns) {  // of no row: what the turn needs, for take_turn()
      if (lane() == kWarpRows) place = turn;
      if (lane() == kWarpRows + 1) place = static_cast<std::uint32_t>(unit.part_of_block);
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
    if (lane() < kWarpRows) shared_.last_keys[stage][at] = min(last_key, unit.keys - 1);
    if (threadIdx.x == 0) shared_.headers[stage] = {item, flags | (masked ? kMaskedTile : 0), unit.keys, 0};
    shared_.full[stage].arrive();
    place_.advance();
    // Before the consumers give the keys back they need room for dq of the tile before.
    drain(flags & kFirstTile ? 1 : 2);
    places_[2] = places_[1], places_[1] = places_[0], places_[0] = place;
    ++pending_;
    if (flags & kFirstTile) load_keys(unit);
  }

  /// Takes dq of tiles, the oldest first, until `keep` are pending.
  __device__ __forceinline__ void drain(int keep) {
    for (; pending_ > keep; --pending_) {
      shared_.gradients_full.wait(gradients_parity_);
      gradients_parity_ ^= 1u;
      const std::uint32_t place = pending_ == 3 ? places_[2] : pending_ == 2 ? places_[1] : places_[0];
      move_rows(place);
      wait_bulk_reads();
      __syncwarp();
      if (lane() == 0) shared_.gradients_empty.arrive();
    }
  }

  /// Rows of dq of this warp to their places.
  __device__ __forceinline__ void move_rows(std::uint32_t place) {
    const std::uint32_t row = shared_address(shared_.query_gradients) + Shared::row_offset(row_of_lane());
    if constexpr (kTurns) {
      end_turn();
      const std::uint32_t turn = __shfl_sync(0xffffffffu, place, kWarpRows);
      const int part = static_cast<int>(__shfl_sync(0xffffffffu, place, kWarpRows + 1));
      if (part > 0) wait_for_turn(chunk_.turns + turn, part);
      if (lane() < kWarpRows && place != kNoPlace) {
        float* to = static_cast<float*>(chunk_.partials) + static_cast<std::uint64_t>(place) * kDim;
        if (part == 0) {
          store_bulk(to, row, kDim * 4);
        } else {
          add_bulk(to, row, kDim * 4);
        }
      }
      turn_ = turn;
      part_ = part;
    } else if (place != kNoPlace) {
      store_bulk(static_cast<T*>(chunk_.partials) + static_cast<std::uint64_t>(place) * kDim, row, kDim * 2);
    }
  }

  /// Until unit `part` - 1 of the block has added the rows.
  __device__ __forceinline__ void wait_for_turn(const std::int32_t* turn, int part) const {
    while (load_acquire(turn) != part) {
    }
    __syncwarp();
  }

  /// The rows moved last are there: the next unit of the block may add to them.
  __device__ __forceinline__ void end_turn() {
    if (part_ < 0) return;
    wait_bulk_stores();
    __syncwarp();
    if (lane() == 0) store_release(chunk_.turns + turn_, part_ + 1);
    part_ = -1;
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
  Shared& shared_;
  RingPlace<Shape::kStages> place_;
  std::uint32_t keys_parity_ = 0;
  std::uint32_t gradients_parity_ = 0;
  int pending_ = 0;               // tiles whose dq is not taken yet
  std::uint32_t places_[3] = {};  // of this lane's row of those tiles, the newest first
  std::uint32_t turn_ = 0;        // of the rows moved last
  int part_ = -1;                 // of the block; -1: no turn to end
};

}  // namespace moba::cuda
