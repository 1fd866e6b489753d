// What feeds attend_history_kernel: the layout of its shared memory, and the warpgroup that takes work, gathers query
// rows and orders keys and values.
#pragma once

#include "cuda/attend.h"
#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"

namespace moba::cuda::history {

inline constexpr int kGroupRows = 64;  // query rows of a multiplying warpgroup
inline constexpr int kQueryStages = 3;
inline constexpr int kKeyStages = 2;
inline constexpr int kUnitStages = 4;
inline constexpr int kGatherWarps = 3;  // of the producers; the first warp orders keys and values
inline constexpr unsigned kPollNanoseconds = 40;
inline constexpr std::uint32_t kNoPlace = 0xffffffffu;

/// What depends on the number of multiplying warpgroups: three where short heads leave the registers for it.
template <int kDim>
struct HistoryShape {
  static constexpr int kGroups = history_tile_rows(kDim) / kGroupRows;
  static_assert(kGroups == 2 || kGroups == 3);
  static constexpr int kRows = kGroups * kGroupRows;  // of a tile
  static constexpr int kConsumerWarps = 4 * kGroups;
  static constexpr int kThreads = 128 + kConsumerWarps * 32;  // the producers first
  static constexpr int kGatherRows = kGroups == 2 ? 48 : 64;  // of a tile by each warp: 48, 48 and 32; or 64
  // Together what the launch has: 384 times 168 or 512 times 128.
  static constexpr int kProducerRegisters = kGroups == 2 ? 72 : 80;
  static constexpr int kConsumerRegisters = kGroups == 2 ? 216 : 144;
};

/// What the multiplying warpgroups must know of a tile of rows; key_tiles == 0 ends the work.
struct TileInfo {
  std::int32_t key_tiles;
  std::int32_t tail;  // keys of the last tile of keys
  std::int32_t first_of_unit, last_of_unit;
  std::int32_t groups;  // of 64 rows; the warpgroups behind them have none

  /// Each tile of keys comes for this tile of rows and goes after it, but for those that stay for a whole unit.
  __device__ __forceinline__ bool keys_arrive() const { return key_tiles > 1 || first_of_unit; }
  __device__ __forceinline__ bool keys_leave() const { return key_tiles > 1 || last_of_unit; }
};

template <class T, int kDim, int kKeys>
struct HistoryStorage {
  static constexpr int kRows = HistoryShape<kDim>::kRows;
  alignas(1024) T q[kQueryStages][kRows * kDim];
  alignas(1024) T k[kKeyStages][kKeys * kDim];
  alignas(1024) T v[kKeyStages][kKeys * kDim];
  std::uint32_t place[kQueryStages][kRows];  // of each row's partial result; kNoPlace for none
  TileInfo info[kQueryStages];
  std::int64_t unit[kUnitStages];  // indices of the units that this thread block works on, in order
  Barrier unit_full[kUnitStages], unit_empty[kUnitStages];
  Barrier q_copied[kQueryStages][kGatherWarps];
  Barrier q_full[kQueryStages], q_empty[kQueryStages];
  Barrier k_full[kKeyStages], k_empty[kKeyStages];
  Barrier v_full[kKeyStages], v_empty[kKeyStages];
};

/// A unit of work: a work item for one key/value head. Where `valid` is false there are no more.
struct Unit {
  bool valid;
  WorkItem item;
  std::int32_t head = 0;  // the first of its query heads
  std::int32_t rows = 0;  // entries times query heads

  __device__ __forceinline__ Unit(const HistoryArgs& args, std::int64_t index)
      : valid(index < static_cast<std::int64_t>(*args.item_count) * args.groups.units_per_list) {
    if (!valid) return;
    const HeadGroups& groups = args.groups;
    const bool one_unit = groups.units_per_list == 1;
    item = args.items[one_unit ? index : index / groups.units_per_list];
    const auto unit = static_cast<std::int32_t>(one_unit ? 0 : index % groups.units_per_list);
    head = (args.first_list + item.list) * groups.heads_per_list + unit * groups.heads_per_unit;
    rows = item.count * groups.heads_per_unit;
  }
  __device__ __forceinline__ int tiles(int tile_rows) const { return (rows + tile_rows - 1) / tile_rows; }
  __device__ __forceinline__ int key_tiles(int keys) const { return (item.keys + keys - 1) / keys; }
};

/// The row at a position of a unit, looked up a tile before it is used.
struct Lookup {
  static constexpr std::uint32_t kNone = 0xffffffffu;  // no entry has all bits set: slots end before kMaxBudget
  std::uint32_t entry = kNone;
  std::int32_t head = 0;  // query head

  __device__ __forceinline__ void find(const HistoryArgs& args, const Unit& unit, std::int32_t position) {
    entry = kNone;
    if (!unit.valid || position >= unit.rows) return;
    const std::int32_t group = args.groups.heads_per_unit;
    const std::int32_t entry_index = group == 1 ? position : position / group;
    head = unit.head + position - entry_index * group;
    entry = __ldg(args.entries + unit.item.begin + entry_index);
  }
  /// Where the row lies in q, in pieces of 16 bytes; anywhere for none: what becomes of it is not stored.
  __device__ __forceinline__ std::uint32_t source(const HistoryArgs& args) const {
    if (entry == kNone) return 0;
    const std::int64_t at =
        (args.partials.first_row + (entry >> kSlotBits)) * args.q_row_stride + head * args.q_head_stride;
    return static_cast<std::uint32_t>(at / 8);
  }
  /// Where its partial result goes.
  __device__ __forceinline__ std::uint32_t place(const HistoryArgs& args) const {
    if (entry == kNone) return kNoPlace;
    const auto slot = static_cast<std::int32_t>(entry & ((1u << kSlotBits) - 1u));
    return static_cast<std::uint32_t>(args.partials.place(entry >> kSlotBits, head, slot));
  }
};

/// Thread 0: keys and values of unit after unit.
template <class T, int kDim, int kKeys>
__device__ __forceinline__ void produce_keys(const HistoryArgs& args, const CUtensorMap& k_map,
                                             const CUtensorMap& v_map, HistoryStorage<T, kDim, kKeys>& storage) {
  RingPlace<kUnitStages> unit_place;
  RingPlace<kKeyStages> place;
  while (true) {
    storage.unit_full[unit_place.stage].wait(unit_place.parity);
    const Unit unit(args, storage.unit[unit_place.stage]);
    storage.unit_empty[unit_place.stage].arrive();
    unit_place.advance();
    if (!unit.valid) return;
    const int key_tiles = unit.key_tiles(kKeys);
    const int rounds =
        key_tiles == 1 ? 1
                       : unit.tiles(HistoryShape<kDim>::kRows);  // a single tile of keys stays for all tiles of rows
    const std::int32_t kv_head = unit.head / args.groups.heads_per_kv;
    for (int round = 0; round < rounds; ++round) {
      for (int tile = 0; tile < key_tiles; ++tile) {
        constexpr std::uint32_t kBytes = kKeys * kDim * sizeof(T);
        const auto key = static_cast<int>(unit.item.first_key) + tile * kKeys;
        storage.k_empty[place.stage].wait(place.parity ^ 1u);
        storage.k_full[place.stage].arrive_expecting(kBytes);
        copy_tile<kKeys, kDim>(storage.k[place.stage], &k_map, &storage.k_full[place.stage], key, kv_head);
        storage.v_empty[place.stage].wait(place.parity ^ 1u);
        storage.v_full[place.stage].arrive_expecting(kBytes);
        copy_tile<kKeys, kDim>(storage.v[place.stage], &v_map, &storage.v_full[place.stage], key, kv_head);
        place.advance();
      }
    }
  }
}

/// The row, of each 32, that a lane looks up: gather_rows() then takes the rows of each step from lanes whose numbers
/// are known to the compiler.
template <int kDim>
__device__ __forceinline__ int looked_up_row() {
  constexpr int kChunks = kDim / 8, kRowsAtOnce = 32 / kChunks;
  const int lane = threadIdx.x % 32;
  return lane % kChunks * kRowsAtOnce + lane / kChunks;
}

/// kCount rows of a tile by one warp; each lane knows where the row looked_up_row() is.
template <class T, int kDim, int kCount>
__device__ __forceinline__ void gather_rows(const HistoryArgs& args, std::uint32_t source, int first_row, T* shared) {
  constexpr int kChunks = kDim / 8;          // of 16 bytes in a row
  constexpr int kRowsAtOnce = 32 / kChunks;  // by one warp
  constexpr int kPeriod = 8 / kRowsAtOnce;   // the swizzle repeats after eight rows
  constexpr int kSteps = kCount / kRowsAtOnce, kBatch = 8 < kSteps ? 8 : kSteps;
  const int lane = threadIdx.x % 32, chunk = lane % kChunks, row = lane / kChunks;
  const std::uint32_t base = shared_address(shared) + first_row * kPanelRowBytes;
  std::uint32_t to[kPeriod];
#pragma unroll
  for (int i = 0; i < kPeriod; ++i)
    to[i] = base + swizzled_offset(HistoryShape<kDim>::kRows, i * kRowsAtOnce + row, chunk);
  const uint4* q = static_cast<const uint4*>(args.q) + chunk;
#pragma unroll
  for (int first = 0; first < kSteps; first += kBatch) {
    std::uint32_t from[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) from[i] = __shfl_sync(0xffffffffu, source, first + i, kChunks);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int step = first + i;
      copy_16_async(to[step % kPeriod] + step / kPeriod * 8 * kPanelRowBytes, q + from[i]);
    }
  }
}

/// Three warps: rows of unit after unit, as far ahead as there is room. The first of them also takes the units.
template <class T, int kDim, int kKeys>
__device__ __forceinline__ void produce_rows(const HistoryArgs& args, HistoryStorage<T, kDim, kKeys>& storage) {
  constexpr int kRows = HistoryShape<kDim>::kRows, kGatherRows = HistoryShape<kDim>::kGatherRows;
  const int warp = threadIdx.x / 32 - 1, lane = threadIdx.x % 32;
  const bool leads = warp == 0 && lane == 0;
  const int first_row = warp * kGatherRows, rows = min(kGatherRows, kRows - first_row);
  const int row = looked_up_row<kDim>();
  RingPlace<kUnitStages> unit_place;
  std::int64_t next_unit = blockIdx.x;  // of the leader
  const auto take_unit = [&] {
    if (leads) {
      storage.unit_empty[unit_place.stage].wait(unit_place.parity ^ 1u);
      storage.unit[unit_place.stage] = next_unit;
      storage.unit_full[unit_place.stage].arrive();
      // Used a unit later, when it will have come. The counter starts at -1.
      next_unit = std::int64_t{gridDim.x} + 1 + atomicAdd(args.units_taken, 1);
    }
    storage.unit_full[unit_place.stage].wait(unit_place.parity);
    const std::int64_t index = storage.unit[unit_place.stage];
    __syncwarp();
    if (lane == 0) storage.unit_empty[unit_place.stage].arrive();
    unit_place.advance();
    return Unit(args, index);
  };

  // Tiles under way are handed on when their copies have come, and the fence between copies and products is here: it
  // waits for all that a thread wrote, and the readers write partial results, which take their time.
  RingPlace<kQueryStages> q_place, copied_place;
  int copying = 0;
  const auto hand_on = [&] {
    if (copying == 0) return;
    Barrier& copied = storage.q_copied[copied_place.stage][warp];
    if (!__all_sync(0xffffffffu, copied.done_now(copied_place.parity))) return;
    fence_async_proxy();
    __syncwarp();
    if (lane == 0) storage.q_full[copied_place.stage].arrive();
    copied_place.advance();
    --copying;
  };
  const auto has_room = [&] {
    return __all_sync(0xffffffffu, storage.q_empty[q_place.stage].done_now(q_place.parity ^ 1u));
  };

  Unit unit = take_unit();
  int tile = 0, tiles = unit.tiles(kRows);
  Lookup lookup[2];
  std::int32_t keys, marks;  // of the block; 1: the first tile of its unit, 2: the last, and 4 * groups of rows
  const auto look_up = [&] {
    lookup[0].find(args, unit, tile * kRows + first_row + row);
    if (row + 32 < rows) lookup[1].find(args, unit, tile * kRows + first_row + 32 + row);
    keys = unit.valid ? unit.item.keys : 0;
    const std::int32_t groups = (min(unit.rows - tile * kRows, kRows) + kGroupRows - 1) / kGroupRows;
    marks = (tile == 0 ? 1 : 0) + (tile + 1 == tiles ? 2 : 0) + 4 * groups;
  };
  look_up();
  while (true) {
    const Lookup now[2] = {lookup[0], lookup[1]};
    const std::int32_t now_keys = keys, now_marks = marks;
    if (now_keys > 0) {
      if (++tile == tiles) {
        unit = take_unit();
        tile = 0, tiles = unit.tiles(kRows);
      }
      look_up();  // used in the next round
    }
    hand_on();
    while (copying > 0 && !has_room()) {
      hand_on();
      __nanosleep(kPollNanoseconds);
    }
    storage.q_empty[q_place.stage].wait(q_place.parity ^ 1u);  // asleep, which leaves the multiplying warps their turns
    T* q = storage.q[q_place.stage];
    std::uint32_t* place = storage.place[q_place.stage] + first_row;
    if (leads) {
      const std::int32_t key_tiles = (now_keys + kKeys - 1) / kKeys;
      storage.info[q_place.stage] = {key_tiles, now_keys - (key_tiles - 1) * kKeys, now_marks & 1, now_marks & 2,
                                     now_marks >> 2};
    }
    if (now_keys > 0) {
      place[row] = now[0].place(args);
      gather_rows<T, kDim, 32>(args, now[0].source(args), first_row, q);
      if (rows > 32) {
        hand_on();
        if (row + 32 < rows) place[row + 32] = now[1].place(args);
        gather_rows<T, kDim, kGatherRows - 32>(args, now[1].source(args), first_row + 32, q);
      }
    }
    storage.q_copied[q_place.stage][warp].arrive_after_copies();
    q_place.advance();
    ++copying;
    if (now_keys == 0) break;
  }
  while (copying > 0) hand_on();
}

}  // namespace moba::cuda::history
