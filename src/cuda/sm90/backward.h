// attend_backward on Hopper: what its kernels share, and their launchers.
//
// A unit is 128 keys of one block of one key/value head: it alone sums their dk and dv. Its work is a sequence of tiles
// of query rows: for each query head of the group the rows whose own block it is, then the rows that chose the block.
// A unit with many tiles is cut into parts, each an item of the persistent kernel; parts leave their sums in slabs,
// which are added in order. Each (row, head) has a place for the gradient from each (slot, 128 keys of the block); the
// places are added in order as well, so every result has the same bits in every run.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/inverse.h"
#include "moba/tensor.h"

namespace moba::cuda {

inline constexpr int kUnitKeys = 128;
inline constexpr int kFewestTurns = 5;
inline constexpr int kMostTurns = 256;  // the work list keeps so many units of a block in order
inline constexpr int kTurnsOfTile = 4;  // each warp that moves rows of a tile has its own

/// Query rows of a tile: as many as the registers of two warpgroups allow beside the sums of 128 keys.
constexpr int tile_rows_of(int head_dim) {
  return head_dim == 64 ? 128 : 64;
}

/// Whether the units of a block take turns at fp32 places; without turns, each unit has a place of its own, of the
/// dtype of q. A few units lose more by waiting for each other than their places cost, and at D = 64 shared memory has
/// no room for fp32 tiles of dq.
constexpr bool takes_turns(std::int64_t unit_tiles, int head_dim) {
  return head_dim == 128 && unit_tiles >= kFewestTurns && unit_tiles <= kMostTurns;
}

/// lse in units of log2 (+inf for rows without a gradient) and delta - dlse of one row of one head.
struct RowTerm {
  float lse_log2;
  float bias;
};

/// A part of a unit: its tiles [first_tile, first_tile + tiles); slab < 0: it is the whole unit.
struct BackwardItem {
  std::int32_t unit;
  std::int32_t first_tile;
  std::int32_t tiles;
  std::int32_t slab;
};

/// The slabs [first, first + parts) of a unit; parts < 2: it has none.
struct UnitSlabs {
  std::int32_t first;
  std::int32_t parts;
};

/// Rows of a tensor [tokens, heads, D] with free strides, in elements.
struct RowsOf {
  void* data;
  std::int64_t token_stride;
  std::int64_t head_stride;
};

/// One chunk of work: the query rows [first_row, first_row + rows) and the key/value heads [first_kv_head,
/// first_kv_head + kv_heads).
struct BackwardChunk {
  // Whole tensors.
  RowsOf q, k, v, dout, dq, dk, dv;
  std::int64_t total_rows, total_keys;
  const RowTerm* terms;  // [H, total_rows]
  float softmax_scale;

  // The list and its transpose.
  const SequenceSpan* sequences;
  std::int64_t sequence_count;
  const BlockSpan* block_spans;
  std::int64_t block_rows;
  const std::int64_t* offsets;   // [lists of the chunk * block_rows + 1]
  const std::uint32_t* entries;  // rows from first_row
  const std::int32_t* blocks;    // [total_rows, HS, budget]
  std::int64_t blocks_row_stride, blocks_head_stride;
  std::int32_t heads, selection_heads, budget;
  std::int64_t block_size;

  // The chunk.
  std::int64_t first_row, rows;
  std::int32_t first_kv_head, kv_heads, group;  // group: query heads a key/value head
  std::int32_t first_selection_head;
  std::int32_t unit_tiles;  // units a block
  std::int32_t tile_limit;  // tiles of an item

  // Workspace.
  std::int32_t* counters;  // items, slabs, the next item
  BackwardItem* items;
  UnitSlabs* unit_slabs;  // [units()]
  void* partials;  // [rows, kv_heads * group, budget + 1, place_units(), D], dtype of q; or fp32, see takes_turns()
  std::int32_t* turns;  // [kv_heads * group, turns_of_head(), kTurnsOfTile]: units that have added; null without turns
  float* slabs;         // [slab, {dk, dv}, kUnitKeys, D]
  float* sums;          // [{dk, dv}, kv_heads, total_keys, D] summed over row chunks; null where one chunk has all rows

  constexpr std::int64_t units() const { return block_rows * kv_heads * unit_tiles; }
  constexpr int place_units() const { return turns == nullptr ? unit_tiles : 1; }
};

/// Tiles of own rows, and tiles of listed rows, of one query head: each list of a block ends in one that is not full.
constexpr std::int64_t own_tiles_of_head(std::int64_t rows, std::int64_t block_rows, int tile_rows) {
  return rows / tile_rows + block_rows + 1;
}
constexpr std::int64_t turns_of_head(std::int64_t rows, std::int64_t budget, std::int64_t block_rows, int tile_rows) {
  return own_tiles_of_head(rows, block_rows, tile_rows) + rows * budget / tile_rows + block_rows + 1;
}

enum BackwardCounter { kItemCount, kSlabCount, kNextItem, kBackwardCounters };

// Each launcher works on `stream` and throws Error where a launch fails. `dtype` is kBFloat16 or kFloat16, `head_dim`
// 64 or 128.

/// terms from out, dout, lse and dlse (null for zero).
struct TermsInput {
  RowsOf out, dout;
  const float* lse;
  std::int64_t lse_head_stride, lse_row_stride;
  const float* dlse;
  std::int64_t dlse_head_stride, dlse_row_stride;
  std::int64_t rows;
  std::int32_t heads;
  RowTerm* terms;
};
void launch_row_terms(const TermsInput& input, DType dtype, int head_dim, cudaStream_t stream);

/// Fills items, unit_slabs and counters.
void launch_list_items(const BackwardChunk& chunk, int head_dim, cudaStream_t stream);
/// The products: partials, and dk, dv (or sums, or slabs).
void launch_backward_products(const BackwardChunk& chunk, DType dtype, int head_dim, int processors,
                              cudaStream_t stream);
/// Adds the slabs of each cut unit into dk, dv or sums.
void launch_add_slabs(const BackwardChunk& chunk, DType dtype, int head_dim, cudaStream_t stream);
/// dq of the chunk's rows from their partials; zero for rows that see no key.
void launch_add_partials(const BackwardChunk& chunk, DType dtype, int head_dim, cudaStream_t stream);
/// dk, dv from sums: after the last row chunk.
void launch_round_sums(const BackwardChunk& chunk, DType dtype, int head_dim, cudaStream_t stream);
/// Zeroes dk and dv of the keys that no sequence holds.
void launch_clear_keyless(const BackwardChunk& chunk, std::int64_t kv_heads, DType dtype, int head_dim,
                          cudaStream_t stream);

}  // namespace moba::cuda
