// What feeds attend_history_kernel: the layout of its shared memory, and the warpgroup that takes work, gathers query
// rows and orders keys and values.
#pragma once

#include "cuda/attend.h"
#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"

namespace moba::cuda::history {

inline constexpr int kRows = 128;                           // query rows of a tile
inline constexpr int kConsumerWarps = 8;                    // two warpgroups
inline constexpr int kThreads = 128 + kConsumerWarps * 32;  // the producers first
inline constexpr int kQueryStages = 3;
inline constexpr int kKeyStages = 2;
inline constexpr int kUnitStages = 4;
inline constexpr int kGatherWarps = 3;  // of the producers; the first warp orders keys and values
inline constexpr int kGatherRows = 48;  // of a tile by each of them: 48, 48 and 32
inline constexpr int kProducerRegisters = 72;
inline constexpr int kConsumerRegisters = 216;  // 128 * 72 + 256 * 216 <= 65536
inline constexpr std::uint32_t kNoPlace = 0xffffffffu;

/// What the multiplying warpgroups must know of a tile of rows; key_tiles == 0 ends the work.
struct TileInfo {
  std::int32_t key_tiles;
  std::int32_t tail;  // keys of the last tile of keys
  std::int32_t first_of_unit, last_of_unit;

  /// Each tile of keys comes for this tile of rows and goes after it, but for those that stay for a whole unit.
  __device__ __forceinline__ bool keys_arrive() const { return key_tiles > 1 || first_of_unit; }
  __device__ __forceinline__ bool keys_leave() const { return key_tiles > 1 || last_of_unit; }
};

template <class T, int kDim, int kKeys>
struct HistoryStorage {
  alignas(1024) T q[kQueryStages][kRows * kDim];
  alignas(1024) T k[kKeyStages][kKeys * kDim];
  alignas(1024) T v[kKeyStages][kKeys * kDim];
  std::uint32_t place[kQueryStages][kRows];  // of each row's partial result; kNoPlace for none
  TileInfo info[kQueryStages];
  std::int64_t unit[kUnitStages];  // indices of the units that this thread block works on, in order
  Barrier unit_full[kUnitStages], unit_empty[kUnitStages];
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
  __device__ __forceinline__ int tiles() const { return (rows + kRows - 1) / kRows; }
  __device__ __forceinline__ int key_tiles(int keys) const { return (item.keys + keys - 1) / keys; }
};

/// Where the row at `position` of a unit lies in q, and where its partial result goes.
struct Lookup {
  std::int64_t source = -1;
  std::uint32_t place = kNoPlace;

  __device__ __forceinline__ void find(const HistoryArgs& args, const Unit& unit, std::int32_t position) {
    source = -1;
    place = kNoPlace;
    if (!unit.valid || position >= unit.rows) return;
    const std::int32_t group = args.groups.heads_per_unit;
    const std::int32_t entry_index = group == 1 ? position : position / group;
    const std::int32_t head = unit.head + position - entry_index * group;
    const std::uint32_t entry = __ldg(args.entries + unit.item.begin + entry_index);
    const std::uint32_t row = entry >> kSlotBits, slot = entry & ((1u << kSlotBits) - 1u);
    const Partials& partials = args.partials;
    source = (partials.first_row + row) * args.q_row_stride + head * args.q_head_stride;
    place = static_cast<std::uint32_t>(partials.place(row, head) + slot);
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
    const int rounds = key_tiles == 1 ? 1 : unit.tiles();  // a single tile of keys stays for all tiles of rows
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

/// A gathering warp's rows of a tile; lane l has looked up the rows l and 32 + l of them.
template <class T, int kDim>
__device__ __forceinline__ void gather_rows(const HistoryArgs& args, const Lookup (&lookup)[2], int first_row,
                                            T* shared) {
  constexpr int kChunks = kDim / 8;          // of 16 bytes in a row
  constexpr int kRowsAtOnce = 32 / kChunks;  // by one warp
  const int lane = threadIdx.x % 32, chunk = lane % kChunks;
  const std::uint32_t base = shared_address(shared);
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    if (part > 0 && first_row + 32 >= kRows) break;
#pragma unroll 4
    for (int step = 0; step < (part == 0 ? 32 : kGatherRows - 32) / kRowsAtOnce; ++step) {
      const int row = step * kRowsAtOnce + lane / kChunks;
      const std::int64_t from = __shfl_sync(0xffffffffu, lookup[part].source, row);
      const T* source = static_cast<const T*>(args.q) + (from < 0 ? 0 : from) + chunk * 8;
      copy_16_async(base + swizzled_offset(kRows, first_row + part * 32 + row, chunk), source, from >= 0);
    }
  }
}

/// Three warps: rows of unit after unit, as far ahead as there is room. The first of them also takes the units.
template <class T, int kDim, int kKeys>
__device__ __forceinline__ void produce_rows(const HistoryArgs& args, HistoryStorage<T, kDim, kKeys>& storage) {
  const int warp = threadIdx.x / 32 - 1, lane = threadIdx.x % 32;
  const bool leads = warp == 0 && lane == 0;
  const int first_row = warp * kGatherRows;
  RingPlace<kUnitStages> unit_place;
  RingPlace<kQueryStages> q_place;
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
  Lookup lookup[2];
  const auto look_up = [&](const Unit& unit, int tile) {
    lookup[0].find(args, unit, tile * kRows + first_row + lane);
    if (lane < kGatherRows - 32) lookup[1].find(args, unit, tile * kRows + first_row + 32 + lane);
  };
  // The fence between copies and products is here and not with the readers: it waits for all that a thread wrote, and
  // theirs are partial results on their way to memory.
  int copying = -1;  // the stage that is being filled
  const auto deliver = [&] {
    fence_async_proxy();
    storage.q_full[copying].arrive();
    copying = -1;
  };
  Unit unit = take_unit();
  int tile = 0, tiles = unit.tiles();
  look_up(unit, tile);
  while (true) {
    if (copying >= 0 && !__all_sync(0xffffffffu, storage.q_empty[q_place.stage].done(q_place.parity ^ 1u))) {
      copy_async_wait<0>();
      deliver();
    }
    storage.q_empty[q_place.stage].wait(q_place.parity ^ 1u);
    if (leads) {
      const int key_tiles = unit.valid ? unit.key_tiles(kKeys) : 0;
      storage.info[q_place.stage] = {key_tiles, unit.item.keys - (key_tiles - 1) * kKeys, tile == 0, tile + 1 == tiles};
    }
    if (unit.valid) {
      storage.place[q_place.stage][first_row + lane] = lookup[0].place;
      if (lane < kGatherRows - 32 && first_row + 32 + lane < kRows) {
        storage.place[q_place.stage][first_row + 32 + lane] = lookup[1].place;
      }
      gather_rows<T, kDim>(args, lookup, first_row, storage.q[q_place.stage]);
    }
    copy_async_commit();
    if (copying >= 0) {
      copy_async_wait<1>();
      deliver();
    }
    copying = q_place.stage;
    q_place.advance();
    if (!unit.valid) break;
    if (++tile == tiles) {
      unit = take_unit();
      tile = 0, tiles = unit.tiles();
    }
    look_up(unit, tile);  // used a tile later
  }
  copy_async_wait<0>();
  deliver();
}

}  // namespace moba::cuda::history
