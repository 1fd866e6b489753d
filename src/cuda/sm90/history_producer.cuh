// What feeds attend_history_kernel: the layout of its shared memory, the walk over work items, and the warpgroup that
// gathers query rows and orders keys and values.
#pragma once

#include "cuda/attend.h"
#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"

namespace moba::cuda::history {

inline constexpr int kRows = 128;                           // query rows of a tile
inline constexpr int kConsumerWarps = 8;                    // two warpgroups
inline constexpr int kThreads = 128 + kConsumerWarps * 32;  // the producers first
inline constexpr int kQueryStages = 3;
inline constexpr int kQueriesAhead = 2;  // tiles of rows ordered before the keys of the current one
inline constexpr int kKeyStages = 2;
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
  Barrier q_full[kQueryStages], q_empty[kQueryStages];
  Barrier k_full[kKeyStages], k_empty[kKeyStages];
  Barrier v_full[kKeyStages], v_empty[kKeyStages];
};

/// Walks over the tiles of rows of this thread block: units (a work item for one key/value head) and their tiles.
struct Cursor {
  const HistoryArgs& args;
  std::int64_t index, units;
  WorkItem item;
  std::int32_t head = 0;  // the first of the unit's query heads
  std::int32_t rows = 0;  // entries times query heads
  std::int32_t tile = 0, tiles = 0;

  __device__ __forceinline__ explicit Cursor(const HistoryArgs& arguments)
      : args(arguments),
        index(blockIdx.x),
        units(static_cast<std::int64_t>(*arguments.item_count) * arguments.groups.units_per_list) {
    load();
  }
  __device__ __forceinline__ bool valid() const { return index < units; }
  __device__ __forceinline__ void next() {
    if (++tile < tiles) return;
    index += gridDim.x;
    load();
  }
  __device__ __forceinline__ int key_tiles(int keys) const { return (item.keys + keys - 1) / keys; }

 private:
  __device__ __forceinline__ void load() {
    if (!valid()) return;
    const HeadGroups& groups = args.groups;
    const bool one_unit = groups.units_per_list == 1;
    item = args.items[one_unit ? index : index / groups.units_per_list];
    const auto unit = static_cast<std::int32_t>(one_unit ? 0 : index % groups.units_per_list);
    head = (args.first_list + item.list) * groups.heads_per_list + unit * groups.heads_per_unit;
    rows = item.count * groups.heads_per_unit;
    tile = 0;
    tiles = (rows + kRows - 1) / kRows;
  }
};

/// The row that this producer thread looks up in a tile: where q begins and where the partial result goes.
struct Lookup {
  std::int64_t source = -1;
  std::uint32_t place = kNoPlace;

  __device__ __forceinline__ explicit Lookup(const Cursor& cursor) {
    if (!cursor.valid()) return;
    const HistoryArgs& args = cursor.args;
    const std::int32_t position = cursor.tile * kRows + static_cast<std::int32_t>(threadIdx.x);
    if (position >= cursor.rows) return;
    const std::int32_t group = args.groups.heads_per_unit;
    const std::int32_t entry_index = group == 1 ? position : position / group;
    const std::int32_t head = cursor.head + position - entry_index * group;
    const std::uint32_t entry = __ldg(args.entries + cursor.item.begin + entry_index);
    const std::uint32_t row = entry >> kSlotBits, slot = entry & ((1u << kSlotBits) - 1u);
    const Partials& partials = args.partials;
    source = (partials.first_row + row) * args.q_row_stride + head * args.q_head_stride;
    place = static_cast<std::uint32_t>(partials.place(row, head) + slot);
  }
};

/// The producer warpgroup gathers a tile of query rows; each lane has looked one row up for its warp.
template <class T, int kDim>
__device__ __forceinline__ void gather_rows(const HistoryArgs& args, std::int64_t offset, T* shared) {
  constexpr int kChunks = kDim / 8;          // of 16 bytes in a row
  constexpr int kRowsAtOnce = 32 / kChunks;  // by one warp
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int chunk = lane % kChunks;
  const std::uint32_t base = shared_address(shared);
#pragma unroll
  for (int step = 0; step < 32 / kRowsAtOnce; ++step) {
    const int row = step * kRowsAtOnce + lane / kChunks;
    const std::int64_t from = __shfl_sync(0xffffffffu, offset, row);
    const T* source = static_cast<const T*>(args.q) + (from < 0 ? 0 : from) + chunk * 8;
    copy_16_async(base + swizzled_offset(kRows, warp * 32 + row, chunk), source, from >= 0);
  }
}

template <class T, int kDim, int kKeys>
__device__ __forceinline__ void produce(const HistoryArgs& args, const CUtensorMap& k_map, const CUtensorMap& v_map,
                                        HistoryStorage<T, kDim, kKeys>& storage) {
  RingPlace<kQueryStages> q_place;
  RingPlace<kKeyStages> place;
  const auto order_keys = [&](const Cursor& cursor) {
    const int key_tiles = cursor.key_tiles(kKeys);
    if (key_tiles == 1 && cursor.tile > 0) return;  // they are there
    const std::int32_t kv_head = cursor.head / args.groups.heads_per_kv;
    for (int tile = 0; tile < key_tiles; ++tile) {
      constexpr std::uint32_t kBytes = kKeys * kDim * sizeof(T);
      const auto key = static_cast<int>(cursor.item.first_key) + tile * kKeys;
      storage.k_empty[place.stage].wait(place.parity ^ 1u);
      storage.k_full[place.stage].arrive_expecting(kBytes);
      copy_tile<kKeys, kDim>(storage.k[place.stage], &k_map, &storage.k_full[place.stage], key, kv_head);
      storage.v_empty[place.stage].wait(place.parity ^ 1u);
      storage.v_full[place.stage].arrive_expecting(kBytes);
      copy_tile<kKeys, kDim>(storage.v[place.stage], &v_map, &storage.v_full[place.stage], key, kv_head);
      place.advance();
    }
  };
  Cursor ahead(args), now(args);
  Lookup lookup(ahead);
  // One tile, or the sign that there are no more.
  const auto order_rows = [&] {
    storage.q_empty[q_place.stage].wait(q_place.parity ^ 1u);
    storage.place[q_place.stage][threadIdx.x] = lookup.place;
    if (threadIdx.x == 0) {
      const int key_tiles = ahead.valid() ? ahead.key_tiles(kKeys) : 0;
      storage.info[q_place.stage] = {key_tiles, ahead.item.keys - (key_tiles - 1) * kKeys, ahead.tile == 0,
                                     ahead.tile + 1 == ahead.tiles};
    }
    if (ahead.valid()) gather_rows<T, kDim>(args, lookup.source, storage.q[q_place.stage]);
    storage.q_full[q_place.stage].arrive_after_copies();
    storage.q_full[q_place.stage].arrive();  // for what ordinary stores wrote
    q_place.advance();
    if (!ahead.valid()) return;
    ahead.next();
    lookup = Lookup(ahead);  // used a tile later, when it will have come
  };
  const bool first_warp = threadIdx.x < 32;
  bool ended = false;
  const auto order_rows_or_end = [&] {
    if (ended) return;
    ended = !ahead.valid();
    order_rows();
  };
  for (int tile = 0; tile < kQueriesAhead; ++tile) order_rows_or_end();
  while (now.valid()) {
    if (threadIdx.x == 0) order_keys(now);
    if (first_warp) __syncwarp();
    order_rows_or_end();
    now.next();
  }
  copy_async_wait<0>();
}

}  // namespace moba::cuda::history
