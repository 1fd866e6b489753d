// Tiles of query rows of one sequence, and the blocks that are past for each row.
#pragma once

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/sm90/sequence_lookup.cuh"

namespace moba::cuda {

/// Rows of one item, all of one sequence, and what is past for them. 32 bits hold every token and block, and their
/// divisions are several times as fast as those of 64 bits.
struct RowTile {
  std::int32_t first_row, end_row;  // packed
  std::int32_t shift;               // position - row
  std::int32_t first_block_row;
  std::int32_t column_tiles;  // tiles of representatives that any row of the item needs
};

/// Tile t of the packed rows: tile i of sequence s has the number q_begin / rows + s + i, as block rows have. No rows
/// where it is nobody's. `columns`: of a tile of representatives.
__device__ __forceinline__ RowTile find_tile(const SelectProblem& problem, const SequenceSpan* sequences,
                                             std::int32_t tile, std::int32_t rows, std::int32_t columns) {
  const auto first_tile = [&](std::int32_t s) {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(sequences[s].q_begin) / rows) + s;
  };
  const auto s = last_at_or_before(static_cast<std::int32_t>(problem.batch.count), tile, first_tile);
  RowTile result{};
  if (s < 0) return result;
  const SequenceSpan sequence = sequences[s];
  const std::int64_t at = static_cast<std::int64_t>(tile - first_tile(s)) * rows;
  if (at >= sequence.q_length) return result;
  result.first_row = static_cast<std::int32_t>(sequence.q_begin + at);
  result.end_row = static_cast<std::int32_t>(min(sequence.q_begin + at + rows, sequence.q_begin + sequence.q_length));
  result.shift = static_cast<std::int32_t>(sequence.k_length - sequence.q_length - sequence.q_begin);
  result.first_block_row = problem.block_of(static_cast<std::int32_t>(sequence.k_begin)) + s;
  const std::int32_t last = result.end_row - 1 + result.shift;
  const std::int32_t past = last < 0 ? 0 : problem.block_of(last);
  result.column_tiles = past > problem.sinks ? (past + columns - 1) / columns : 0;
  return result;
}

/// The past blocks of one row: sinks [0, sinks), candidates [sinks, end), and `end` itself where forced.
struct RowPast {
  std::int32_t sinks = 0, end = 0, past = 0;
};

__device__ __forceinline__ RowPast past_of(const SelectProblem& problem, const RowTile& tile, std::int32_t row) {
  RowPast result;
  const std::int32_t position = row + tile.shift;
  if (row >= tile.end_row || position < 0) return result;
  result.past = problem.block_of(position);
  result.sinks = min(problem.sinks, result.past);
  result.end = result.past - (problem.force_previous && result.past > result.sinks ? 1 : 0);
  return result;
}

}  // namespace moba::cuda
