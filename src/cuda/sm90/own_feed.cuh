// What feeds attend_own_kernel: its shared memory, the thread that finds work and the thread that orders copies.
//
// Queries have a place for each warpgroup. All else that the multiplying warpgroups read comes in pieces of at most 64
// rows through one ring, in the order in which they use it: of each unit keys and values tile by tile, then the partial
// results slot by slot. So the memory is kept busy with partial results, and with the next unit, while products run.
// All warpgroups wait for every piece and release it, also those that only another reads: who has not seen a phase of a
// barrier end can take the one before it for the one after it.
#pragma once

#include "cuda/attend.h"
#include "cuda/dependent_launch.h"
#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/sm90/sequence_lookup.cuh"

namespace moba::cuda::own {

inline constexpr int kRows = kOwnRows;  // of a multiplying warpgroup
inline constexpr int kKeys = kOwnRows;  // of a tile
inline constexpr int kUnitStages = 4;
inline constexpr int kLseSlots = 4;  // whose log-sum-exps come together

/// Two or three multiplying warpgroups, see own_unit_rows().
template <int kGroups>
struct OwnShape {
  static_assert(kGroups == 2 || kGroups == 3);
  static constexpr int kUnitRows = kGroups * kRows;
  static constexpr int kWarps = 4 * kGroups;          // that multiply
  static constexpr int kThreads = 128 + 32 * kWarps;  // the producers first
  // As many as the launch has: 384 threads of 168 registers, or 512 of 128.
  static constexpr int kProducerRegisters = kGroups == 2 ? 40 : 32;
  static constexpr int kConsumerRegisters = kGroups == 2 ? 232 : 160;
};

/// The rows of a warpgroup, and what they see of the unit's keys.
struct GroupPart {
  std::int32_t rows;
  std::int32_t position;    // of the first row, counted from the unit's first key; may be negative: no key
  std::int32_t begin, end;  // tiles of keys; 0, 0 where no row sees any
  std::int32_t last_low;    // the first key that the last row sees
};

/// Consecutive rows of one sequence, and one head.
template <int kGroups>
struct Unit {
  std::int64_t row;        // packed, the first
  std::int64_t first_key;  // packed: where the own block of the first row that sees keys begins
  std::int32_t rows;       // 0: there is no such unit
  std::int32_t head;
  std::int32_t groups;  // that have rows
  std::int32_t key_tiles;
  GroupPart part[kGroups];
};

/// Where the block of a position begins. Positions fit 32 bits, and divisions of 64 would cost as much as the products
/// of a small block.
__device__ __forceinline__ std::int32_t block_start(std::int32_t position, std::int64_t block_size) {
  const auto size = static_cast<std::uint32_t>(block_size);
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(position) / size * size);
}

/// Units are counted head by head within tiles of rows, so that neighbours in time are neighbours in memory, and from
/// the last tile on: the last units of a sequence's first block are short. Tile i of sequence s has the index (rows of
/// the slice before it) / kUnitRows + s + i: no two sequences share one, and the number of units follows from shapes.
template <int kGroups>
__device__ __forceinline__ void find_unit(const OwnArgs& args, std::int64_t index, Unit<kGroups>& unit) {
  constexpr int kUnitRows = OwnShape<kGroups>::kUnitRows;
  unit.rows = 0;
  // The part of sequence s in the slice.
  const auto begin_of = [&](std::int64_t s) {
    const std::int64_t begin = args.sequences[s].q_begin;
    return min(max(begin, args.first_row), args.first_row + args.rows);
  };
  const auto first_tile = [&](std::int64_t s) { return (begin_of(s) - args.first_row) / kUnitRows + s; };
  const auto heads = static_cast<std::uint32_t>(args.partials.heads);
  const std::int64_t tiles = args.rows / kUnitRows + args.sequence_count;
  const auto nth = static_cast<std::uint32_t>(index);
  const std::int64_t tile = tiles - 1 - nth / heads;
  unit.head = static_cast<std::int32_t>(args.partials.first_head + nth % heads);
  const std::int64_t s = last_at_or_before(args.sequence_count, tile, first_tile);
  if (s < 0) return;
  const SequenceSpan span = args.sequences[s];
  unit.row = begin_of(s) + (tile - first_tile(s)) * kUnitRows;
  const std::int64_t end = min(span.q_begin + span.q_length, args.first_row + args.rows);
  if (unit.row >= end) return;
  unit.rows = static_cast<std::int32_t>(min(end - unit.row, std::int64_t{kUnitRows}));
  unit.groups = (unit.rows + kRows - 1) / kRows;
  const auto position = static_cast<std::int32_t>(unit.row - span.q_begin + span.k_length - span.q_length);
  const std::int32_t first_key = block_start(max(position, 0), args.block_size);
  unit.first_key = span.k_begin + first_key;
  std::int32_t key_tiles = 0;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    GroupPart& part = unit.part[group];
    part.rows = min(max(unit.rows - group * kRows, 0), kRows);
    part.position = position - first_key + group * kRows;
    const std::int32_t keys = part.rows > 0 ? max(part.position + part.rows, 0) : 0;
    part.last_low = block_start(max(keys - 1, 0), args.block_size);
    part.begin = keys > 0 ? block_start(max(part.position, 0), args.block_size) / kKeys : 0;
    part.end = (keys + kKeys - 1) / kKeys;
    key_tiles = max(key_tiles, part.end);
  }
  unit.key_tiles = key_tiles;
}

inline std::int64_t unit_count(const OwnArgs& args) {
  return (args.rows / own_unit_rows(args.block_size) + args.sequence_count) * args.partials.heads;
}

/// Floats between a multiple of 16 bytes and the log-sum-exp of a row and slot, whose low bits are enough.
__device__ __forceinline__ int lse_shift(const Partials& partials, std::int64_t row, std::int32_t head,
                                         std::int32_t slot) {
  return static_cast<int>(partials.place(row - partials.first_row, head, slot) & 3);
}

template <class T, int kDim, int kGroups>
struct OwnStorage {
  using Shape = OwnShape<kGroups>;
  // As many as fit.
  static constexpr int kStages = (kDim == 128 ? 13 : 24) - kGroups;
  static constexpr std::uint32_t kPieceBytes = kRows * kDim * sizeof(T);

  alignas(1024) T q[kGroups][kRows * kDim];
  alignas(1024) T piece[kStages][kRows * kDim];
  // Of the rows of a piece and of some slots from its own on, each from a multiple of 16 bytes before the first row.
  alignas(16) float lse[kStages][kLseSlots][kRows + 4];
  Unit<kGroups> unit[kUnitStages];
  Barrier unit_full[kUnitStages], unit_empty[kUnitStages];
  Barrier q_full[kGroups], q_empty[kGroups];
  Barrier full[kStages], empty[kStages];

  __device__ __forceinline__ void init() {
    for (int i = 0; i < kUnitStages; ++i) {
      unit_full[i].init(1);
      unit_empty[i].init(Shape::kWarps + 1);
    }
    for (int i = 0; i < kGroups; ++i) {
      q_full[i].init(1);
      q_empty[i].init(4);
    }
    for (int i = 0; i < kStages; ++i) {
      full[i].init(1);
      empty[i].init(Shape::kWarps);
    }
    fence_barrier_init();
  }
};

/// One thread: finds units ahead of their use. The first come with the launch, all others from a counter.
template <class T, int kDim, int kGroups>
__device__ __forceinline__ void produce_units(const OwnArgs& args, std::int64_t count,
                                              OwnStorage<T, kDim, kGroups>& storage) {
  RingPlace<kUnitStages> place;
  std::int64_t index = blockIdx.x;
  while (true) {
    storage.unit_empty[place.stage].wait(place.parity ^ 1u);
    Unit<kGroups>& unit = storage.unit[place.stage];
    unit.rows = 0;
    while (index < count && unit.rows == 0) {
      const std::int64_t next = std::int64_t{gridDim.x} + 1 + atomicAdd(args.units_taken, 1);  // it starts at -1
      find_unit(args, index, unit);
      index = next;
    }
    storage.unit_full[place.stage].arrive();
    if (unit.rows == 0) return;
    place.advance();
  }
}

/// One thread: orders the pieces of unit after unit.
template <class T, int kDim, int kGroups>
__device__ __forceinline__ void produce_pieces(const OwnArgs& args, const CUtensorMap& q_map, const CUtensorMap& k_map,
                                               const CUtensorMap& v_map, OwnStorage<T, kDim, kGroups>& storage) {
  constexpr std::uint32_t kPieceBytes = OwnStorage<T, kDim, kGroups>::kPieceBytes;
  RingPlace<kUnitStages> unit_place;
  RingPlace<OwnStorage<T, kDim, kGroups>::kStages> place;
  const Partials& partials = args.partials;
  bool merges = false;  // what attend_history does is complete
  const auto begin_piece = [&](std::uint32_t bytes) -> Barrier& {
    storage.empty[place.stage].wait(place.parity ^ 1u);
    storage.full[place.stage].arrive_expecting(bytes);
    return storage.full[place.stage];
  };
  const auto order = [&](const CUtensorMap& map, std::int64_t row, std::int32_t head) {
    Barrier& full = begin_piece(kPieceBytes);
    copy_tile<kRows, kDim>(storage.piece[place.stage], &map, &full, static_cast<int>(row), head);
    place.advance();
  };
  std::uint32_t q_parity = 0;  // a bit for each group
  const auto order_queries = [&](int group, std::int64_t row, std::int32_t head) {
    storage.q_empty[group].wait((q_parity >> group & 1u) ^ 1u);
    q_parity ^= 1u << group;
    storage.q_full[group].arrive_expecting(kPieceBytes);
    copy_tile<kRows, kDim>(storage.q[group], &q_map, &storage.q_full[group], static_cast<int>(row), head);
  };
  const auto order_partial = [&](std::int64_t row, std::int32_t rows, std::int32_t head, std::int32_t slot) {
    const auto lse_bytes = [&](std::int32_t of) {
      return static_cast<std::uint32_t>((lse_shift(partials, row, head, of) + rows + 3) / 4 * 16);
    };
    const auto out_bytes = static_cast<std::uint32_t>(rows * kDim * static_cast<int>(sizeof(T)));
    const std::int32_t lse_end = slot % kLseSlots == 0 ? min(slot + kLseSlots, partials.budget) : slot;
    std::uint32_t bytes = out_bytes;
    for (std::int32_t of = slot; of < lse_end; ++of) bytes += lse_bytes(of);
    Barrier& full = begin_piece(bytes);
    for (std::int32_t of = slot; of < lse_end; ++of) {
      const std::int64_t at = partials.place(row - partials.first_row, head, of);
      load_bulk(storage.lse[place.stage][of - slot], partials.lse + at / 4 * 4, lse_bytes(of), &full);
    }
    const std::int64_t at = partials.place(row - partials.first_row, head, slot);
    load_bulk_once(storage.piece[place.stage], static_cast<const T*>(partials.out) + at * kDim, out_bytes, &full);
    place.advance();
  };

  while (true) {
    storage.unit_full[unit_place.stage].wait(unit_place.parity);
    const Unit<kGroups>& unit = storage.unit[unit_place.stage];
    if (unit.rows == 0) return;
    const std::int32_t kv_head = unit.head / args.heads_per_kv;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (unit.part[group].end > 0) order_queries(group, unit.row + group * kRows, unit.head);
    }
    for (std::int32_t tile = 0; tile < unit.key_tiles; ++tile) {
      order(k_map, unit.first_key + tile * kKeys, kv_head);
      order(v_map, unit.first_key + tile * kKeys, kv_head);
    }
    if (partials.budget == 0) {  // room for results
      for (int group = 0; group < unit.groups; ++group) {
        begin_piece(0);
        place.advance();
      }
    } else if (!merges) {
      wait_for_launch_before();
      fence_async_proxy_global();
      merges = true;
    }
    for (std::int32_t slot = 0; slot < partials.budget; ++slot) {
      for (int group = 0; group < unit.groups; ++group) {
        order_partial(unit.row + group * kRows, unit.part[group].rows, unit.head, slot);
      }
    }
    storage.unit_empty[unit_place.stage].arrive();
    unit_place.advance();
  }
}

}  // namespace moba::cuda::own
