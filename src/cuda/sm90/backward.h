// attend_backward on Hopper: what its kernels share, and their launchers.
//
// A unit is 128 keys of one block of one key/value head: it alone sums their dk and dv. Its work is a sequence of tiles
// of query rows: for each query head of the group the rows whose own block it is, then the rows that chose the block.
// A unit with many tiles is cut into parts, each an item of the persistent kernel; parts leave their sums in slabs,
// which are added in order. Each (row, head) has a place for the gradient from each (slot, 128 keys of the block); the
// places are added in order as well, so every result has the same bits in every run.
//
// A round has some rows and heads, with one inverse of their lists, and is worked off in chunks of key/value heads.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/inverse.h"
#include "moba/tensor.h"

namespace moba::cuda {

inline constexpr int kUnitKeys = 128;
// Units of a block that take turns, see takes_turns().
inline constexpr int kFewestTurns = 5;
inline constexpr int kMostTurns = 256;                             // the work list keeps so many in order
inline constexpr std::int64_t kBackwardInverseItemRows = 1 << 20;  // of the inverse's own work list, not used here

/// Query rows of a tile: as many as the registers of two warpgroups allow beside the sums of 128 keys.
constexpr int tile_rows_of(int head_dim) {
  return head_dim == 64 ? 128 : 64;
}

/// Whether the tiles of query rows of a block are packed for its units, which then take turns at adding their dq to
/// fp32 tiles; otherwise each unit gathers rows and has places of its own, of the dtype of q, for their dq. For a few
/// units packing is too dear and turns make them wait for each other; at D = 64 shared memory has no room for fp32
/// tiles.
constexpr bool takes_turns(std::int64_t unit_tiles, int head_dim) {
  return head_dim == 128 && unit_tiles >= kFewestTurns && unit_tiles <= kMostTurns;
}

/// lse in units of log2 (+inf for rows without a gradient) and delta - dlse of one row of one head.
struct RowTerm {
  float lse_log2;
  float bias;
};

/// 128 keys of a block of one key/value head.
struct KeyUnit {
  std::int64_t first_key;  // packed
  std::int32_t keys;       // 0: the block has no such unit
  std::int32_t part_of_block;
  std::int32_t kv_head;  // of all
  std::int32_t block_row;
  // Rows of the chunk, from chunk.first_row, that stand in the block at or after the unit, and those before them in
  // the same tile: the tiles of own rows begin at the same rows for all units of a block.
  std::int32_t own_row, own_rows;
  std::int32_t own_tile;  // the first one's number in the block
  std::int32_t own_key;   // the key of the unit at which own_row stands; below 0: before the unit
};

/// A part of a unit: its tiles [first_tile, first_tile + tiles); slab < 0: it is the whole unit.
struct BackwardItem {
  KeyUnit unit;
  // The entries of the rows of the group's first query head that chose the block.
  std::int64_t listed_begin;
  std::int32_t listed_count;
  std::int32_t first_tile;
  std::int32_t tiles;
  std::int32_t slab;
};
static_assert(sizeof(BackwardItem) == 64);

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

  // The list and its transpose, of the lists [first_selection_head, …) of the round.
  const SequenceSpan* sequences;
  std::int64_t sequence_count;
  const BlockSpan* block_spans;
  std::int64_t block_rows;
  const std::int64_t* offsets;   // [lists of the round * block_rows + 1]
  const std::uint32_t* entries;  // rows from first_row
  const std::int32_t* blocks;    // [total_rows, HS, budget]
  std::int64_t blocks_row_stride, blocks_head_stride;
  std::int32_t heads, selection_heads, budget;
  std::int64_t block_size;

  // The chunk.
  std::int64_t first_row, rows;
  std::int32_t first_kv_head, kv_heads, group;  // group: query heads a key/value head
  std::int32_t first_selection_head;
  std::int32_t unit_tiles;             // units a block
  std::int32_t tile_limit;             // tiles of an item
  std::int32_t own_tiles, head_tiles;  // own_tiles_of_head() and tiles_of_head()

  // Workspace.
  std::int32_t* counters;  // [kBackwardCounters]
  BackwardItem* items;
  UnitSlabs* unit_slabs;    // [units()]
  std::int32_t* cut_units;  // the units of more than one part, in any order
  // dq from each slot: [rows, kv_heads * group, budget + 1, unit_tiles, D], dtype of q; with turns
  // [kv_heads * group, head_tiles, tile rows, D] fp32, as the copy engine moves tiles.
  void* partials;
  // With turns only, for each tile of each head of the chunk: its rows of q and dO as they lie in shared memory, their
  // terms, how many units have added their dq; and the row of all tiles that belongs to a (row, head, slot).
  std::uint16_t* tiles;      // [kv_heads * group, head_tiles, {q, dO}, tile rows, D]
  RowTerm* tile_terms;       // [kv_heads * group, head_tiles, tile rows]
  std::int32_t* turns;       // [kv_heads * group, head_tiles]; null without turns
  std::uint32_t* tile_rows;  // [rows, kv_heads * group, budget + 1]
  float* slabs;              // [slab, {dk, dv}, kUnitKeys, D]
  float* sums;  // [{dk, dv}, kv_heads, total_keys, D] summed over row chunks; null where one chunk has all rows

  constexpr std::int64_t units() const { return block_rows * kv_heads * unit_tiles; }
};

/// Tiles of own rows, and of own and listed rows, of one query head: each list of a block ends in one that is not full.
constexpr std::int64_t own_tiles_of_head(std::int64_t rows, std::int64_t block_rows, int tile_rows) {
  return rows / tile_rows + block_rows + 1;
}
constexpr std::int64_t tiles_of_head(std::int64_t rows, std::int64_t budget, std::int64_t block_rows, int tile_rows) {
  return own_tiles_of_head(rows, block_rows, tile_rows) + rows * budget / tile_rows + block_rows + 1;
}

enum BackwardCounter {
  kItemCount,
  kSlabCount,
  kCutUnitCount,
  kNextItem,  // to be taken, as are the next two
  kNextRows,
  kNextSlabRows,
  kBackwardCounters
};

/// The chunks of a round, of `chunk_kv_heads` key/value heads each but the last.
struct BackwardRound {
  BackwardChunk whole;  // of all heads, with the workspace of the first chunk
  std::int32_t chunk_kv_heads, chunks;
  std::int32_t chunk_items, chunk_units;

  __host__ __device__ BackwardChunk chunk(int number) const {
    BackwardChunk result = whole;
    const std::int32_t before = number * chunk_kv_heads;
    result.first_kv_head += before;
    result.kv_heads = chunk_kv_heads < whole.kv_heads - before ? chunk_kv_heads : whole.kv_heads - before;
    result.counters += number * kBackwardCounters;
    result.items += static_cast<std::int64_t>(number) * chunk_items;
    result.unit_slabs += static_cast<std::int64_t>(number) * chunk_units;
    result.cut_units += static_cast<std::int64_t>(number) * chunk_units;
    return result;
  }
};

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

/// Fills items, unit_slabs and cut_units of all chunks, whose counters are zero.
void launch_list_items(const BackwardRound& round, int head_dim, cudaStream_t stream);
/// With turns: tiles, tile_terms and tile_rows.
void launch_pack_tiles(const BackwardChunk& chunk, cudaStream_t stream);
/// The products: partials, and dk, dv (or sums, or slabs).
void launch_backward_products(const BackwardChunk& chunk, DType dtype, int head_dim, int processors,
                              cudaStream_t stream);
/// Adds the slabs of each cut unit into dk, dv or sums, and, but with turns, dq of the chunk's rows from their places;
/// zero for rows that see no key.
void launch_backward_sums(const BackwardChunk& chunk, DType dtype, int head_dim, int processors, cudaStream_t stream);
/// With turns: the same of dq, from tiles of partials.
void launch_add_tiles(const BackwardChunk& chunk, DType dtype, cudaStream_t stream);
/// dk, dv from sums: after the last row chunk.
void launch_round_sums(const BackwardChunk& chunk, DType dtype, int head_dim, cudaStream_t stream);
/// Zeroes dk and dv of the keys that no sequence holds.
void launch_clear_keyless(const BackwardChunk& chunk, std::int64_t kv_heads, DType dtype, int head_dim,
                          cudaStream_t stream);

}  // namespace moba::cuda
