// Which query rows a unit of keys has, for the kernel that multiplies and the one that lists its items.
#pragma once

#include <cstdint>

#include "cuda/sm90/backward.h"

namespace moba::cuda {

/// Units of a head come one after the other, so that its rows stay in the L2 cache.
__device__ inline KeyUnit key_unit(const BackwardChunk& chunk, std::uint32_t index, int tile_rows) {
  KeyUnit unit{};
  const std::uint32_t of_head = static_cast<std::uint32_t>(chunk.block_rows) * chunk.unit_tiles;
  const std::uint32_t head = index / of_head, of_block = (index - head * of_head) / chunk.unit_tiles;
  unit.kv_head = chunk.first_kv_head + static_cast<int>(head);
  unit.block_row = static_cast<int>(of_block);
  unit.part_of_block = static_cast<int>(index - head * of_head - of_block * chunk.unit_tiles);
  const BlockSpan block = chunk.block_spans[of_block];
  const int before = unit.part_of_block * kUnitKeys;
  unit.first_key = block.first_key + before;
  unit.keys = max(min(block.keys - before, kUnitKeys), 0);
  if (unit.keys == 0) return unit;
  // Row r of the sequence stands at the key (packed) k_begin + r - q_begin + k_length - q_length.
  const SequenceSpan sequence = chunk.sequences[block.sequence];
  const std::int64_t shift = sequence.q_begin - sequence.k_begin - sequence.k_length + sequence.q_length;
  const std::int64_t begin = max(max(block.first_key + shift, sequence.q_begin), chunk.first_row);
  const std::int64_t end = min(min(block.first_key + block.keys + shift, sequence.q_begin + sequence.q_length),
                               chunk.first_row + chunk.rows);
  unit.own_tile = static_cast<int>(max(unit.first_key + shift - begin, std::int64_t{0})) / tile_rows;
  unit.own_row = static_cast<int>(begin - chunk.first_row) + unit.own_tile * tile_rows;
  unit.own_rows = max(static_cast<int>(end - chunk.first_row) - unit.own_row, 0);
  if (unit.own_rows > 0) unit.own_key = static_cast<int>(unit.own_row + chunk.first_row - shift - unit.first_key);
  return unit;
}

/// The entries of the rows of a query head that chose the unit's block.
struct ListedRows {
  std::int64_t begin = 0, count = 0;
  std::int64_t of_list = 0;  // the first entry of all blocks of the list

  __device__ ListedRows(const BackwardChunk& chunk, const KeyUnit& unit, int head) {
    if (chunk.budget == 0) return;
    const int list = static_cast<int>(static_cast<std::int64_t>(head) * chunk.selection_heads / chunk.heads) -
                     chunk.first_selection_head;
    const std::int64_t bin = list * chunk.block_rows + unit.block_row;
    of_list = chunk.offsets[list * chunk.block_rows];
    begin = chunk.offsets[bin];
    count = chunk.offsets[bin + 1] - begin;
  }
};

/// Tiles of all query heads of the unit.
__device__ inline std::int64_t tiles_of(const BackwardChunk& chunk, const KeyUnit& unit, int tile_rows) {
  std::int64_t tiles = 0;
  for (int member = 0; member < chunk.group; ++member) {
    const ListedRows listed(chunk, unit, unit.kv_head * chunk.group + member);
    tiles += (unit.own_rows + tile_rows - 1) / tile_rows + (listed.count + tile_rows - 1) / tile_rows;
  }
  return tiles;
}

/// The number of the first tile of a block's own rows, and of those of a list of a head, among those of the head of the
/// chunk: no two tiles have the same, because each block of a list has at most one tile that is not full.
__device__ inline int first_own_tile(const KeyUnit& unit, int tile_rows) {
  return (unit.own_row - unit.own_tile * tile_rows) / tile_rows + unit.own_tile + unit.block_row;
}
__device__ inline int first_listed_tile(const BackwardChunk& chunk, const KeyUnit& unit, const ListedRows& listed,
                                        int tile_rows) {
  return chunk.own_tiles + static_cast<int>((listed.begin - listed.of_list) / tile_rows) + unit.block_row;
}

/// A packed tile of query rows.
struct PackedTile {
  std::uint32_t number;  // of the chunk
  std::int32_t own_row;  // the first row, from chunk.first_row; below 0: the rows are listed ones
  bool first, last;      // of the item
};

/// Calls visit(tile) for each tile of kRows rows of the item, in order; for an item without tiles once. The order is
/// that in which units of a block that start together come to a tile together: lists of all heads, then own rows from
/// the end of the block, which all units have, to its beginning.
template <int kRows, class Visit>
__device__ __forceinline__ void for_each_tile(const BackwardChunk& chunk, const BackwardItem& item,
                                              const Visit& visit) {
  const KeyUnit& unit = item.unit;
  int skip = item.first_tile, left = max(item.tiles, 1);
  const int own_tiles = (unit.own_rows + kRows - 1) / kRows;
  bool first = true;
  for (int segment = 0; left > 0; ++segment) {
    const bool own = segment == chunk.group;
    const ListedRows listed(chunk, unit, unit.kv_head * chunk.group + (own ? 0 : segment));
    const int tiles = item.tiles == 0 ? static_cast<int>(own)
                      : own           ? own_tiles * chunk.group
                                      : static_cast<int>((listed.count + kRows - 1) / kRows);
    const int number = own ? first_own_tile(unit, kRows) : first_listed_tile(chunk, unit, listed, kRows);
    for (; skip < tiles && left > 0; ++skip) {
      --left;
      const int member = own ? skip % chunk.group : segment;
      const int tile = own ? max(own_tiles - 1 - skip / chunk.group, 0) : skip;
      const int head = (unit.kv_head - chunk.first_kv_head) * chunk.group + member;
      visit(PackedTile{static_cast<std::uint32_t>(head * chunk.head_tiles + number + tile),
                       own ? unit.own_row + tile * kRows : -1, first, left == 0});
      first = false;
    }
    skip = max(skip - tiles, 0);
  }
}

}  // namespace moba::cuda
