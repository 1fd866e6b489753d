// Which query rows a unit of keys has, for the kernel that multiplies and the one that lists its items.
#pragma once

#include <cstdint>

#include "cuda/sm90/backward.h"

namespace moba::cuda {

/// 128 keys of a block of one key/value head.
struct Unit {
  std::int64_t first_key = 0;  // packed
  int keys = 0;                // 0: the block has no such unit
  int part_of_block = 0;
  int kv_head = 0;  // of all
  std::int64_t block_row = 0;
  // Rows of the chunk, from chunk.first_row, that stand in the block at or after the unit, and those before them in
  // the same tile: the tiles of own rows begin at the same rows for all units of a block.
  int own_row = 0, own_rows = 0;
  int own_tile = 0;  // the first one's number in the block

  /// Units of a head come one after the other, so that its rows stay in the L2 cache.
  __device__ Unit(const BackwardChunk& chunk, std::uint32_t index, int tile_rows) {
    const std::uint32_t of_head = static_cast<std::uint32_t>(chunk.block_rows) * chunk.unit_tiles;
    const std::uint32_t head = index / of_head, of_block = (index - head * of_head) / chunk.unit_tiles;
    kv_head = chunk.first_kv_head + static_cast<int>(head);
    block_row = of_block;
    part_of_block = static_cast<int>(index - head * of_head - of_block * chunk.unit_tiles);
    const BlockSpan block = chunk.block_spans[block_row];
    const int before = part_of_block * kUnitKeys;
    first_key = block.first_key + before;
    keys = max(min(block.keys - before, kUnitKeys), 0);
    if (keys == 0) return;
    // Row r of the sequence stands at the key (packed) k_begin + r - q_begin + k_length - q_length.
    const SequenceSpan sequence = chunk.sequences[block.sequence];
    const std::int64_t shift = sequence.q_begin - sequence.k_begin - sequence.k_length + sequence.q_length;
    const std::int64_t begin = max(max(block.first_key + shift, sequence.q_begin), chunk.first_row);
    const std::int64_t end = min(min(block.first_key + block.keys + shift, sequence.q_begin + sequence.q_length),
                                 chunk.first_row + chunk.rows);
    own_tile = static_cast<int>(max(first_key + shift - begin, std::int64_t{0})) / tile_rows;
    own_row = static_cast<int>(begin - chunk.first_row) + own_tile * tile_rows;
    own_rows = max(static_cast<int>(end - chunk.first_row) - own_row, 0);
    row_shift_ = chunk.first_row - shift - first_key;
  }

  /// The key of the unit at which an own row of the chunk stands; below 0: before the unit, from 128 on: after it.
  __device__ std::int64_t key_of(std::int64_t row) const { return row + row_shift_; }

 private:
  std::int64_t row_shift_ = 0;
};

/// The entries of the rows of a query head that chose the unit's block.
struct ListedRows {
  std::int64_t begin = 0, count = 0;
  std::int64_t of_list = 0;  // the first entry of all blocks of the list

  __device__ ListedRows(const BackwardChunk& chunk, const Unit& unit, int head) {
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
__device__ inline std::int64_t tiles_of(const BackwardChunk& chunk, const Unit& unit, int tile_rows) {
  std::int64_t tiles = 0;
  for (int member = 0; member < chunk.group; ++member) {
    const ListedRows listed(chunk, unit, unit.kv_head * chunk.group + member);
    tiles += (unit.own_rows + tile_rows - 1) / tile_rows + (listed.count + tile_rows - 1) / tile_rows;
  }
  return tiles;
}

}  // namespace moba::cuda
