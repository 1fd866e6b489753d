// The past-block part of list attention: query-block pairs sorted by block, so that each block meets its rows at once.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "portable/segments.h"

namespace moba::torch_ops::portable {

/// What is common to all chunks of one call.
struct HistoryProblem {
  std::int64_t total_q = 0, heads = 0, total_k = 0, kv_heads = 0, max_q = 0;
  at::Tensor own_row;  // int64 [Tq, 1, 1]: for each row the block row of its sequence's block 0
  at::Tensor blocks;   // int32 [Tq, selection heads, budget]; what may not be attended is -1
  const Blocks& key_blocks;

  HistoryProblem(const at::Tensor& q, const at::Tensor& k, const SequenceBatch& batch, const at::Tensor& list,
                 const Rows& rows, const Blocks& key_blocks);

  std::int64_t group() const { return heads / kv_heads; }
};

/// Key heads [head_begin, head_begin + heads) with list slots [slot_begin, slot_begin + slots).
struct ChunkRange {
  std::int64_t head_begin = 0, heads = 0, slot_begin = 0, slots = 0;
};

/// What working off a chunk takes beside what HistoryChunk itself holds: bytes of a pair, of a gathered key, of a tile,
/// of a query row and head whatever its slots.
struct ChunkCost {
  std::int64_t pair = 0, key = 0, tile = 0, row = 0;
};

/// Chunks of as many whole key heads as fit into `bytes`, so that each block is worked off once; of some slots of one
/// key head where a whole one does not fit.
std::vector<ChunkRange> chunks_that_fit(const HistoryProblem& problem, const ChunkCost& cost, std::int64_t bytes);

/// The pairs of a chunk. A pair is (row, query head, slot). Sorted by (key head, block row), stable, they are cut into
/// tiles of at most `tile_rows` pairs of one block. A tile is a segment: its queries, gathered, beside its block's
/// keys, gathered. So no segment is much longer than the others, however popular a block is, and the bound on its
/// length does not launch thousands of idle thread blocks. Pairs of padding (-1) come last, in tiles without keys.
struct HistoryChunk {
  std::int64_t head_begin = 0, heads = 0, slots = 0;  // query heads
  at::Tensor query_rows;                              // int64 [pairs]: row * H + head of each sorted pair; spaced
  at::Tensor inverse;                                 // int64 [Tq * heads, slots]: the sorted place of a pair; spaced
  at::Tensor key_rows;     // int64 [tiles * B]: key token * HK + key head, tile by tile; spaced
  at::Tensor first_tiles;  // int64 [key heads * R + 2]: first tile of each block; no tile; the tiles of padding
  Segments segments;

  HistoryChunk(const HistoryProblem& problem, const ChunkRange& range);

  std::int64_t tiles() const { return segments.cu_q.size(0) - 1; }

  /// For each key token and key head of the chunk its row among the sums of add_key_gradient: int64 [Tk * key heads].
  at::Tensor sum_rows(const HistoryProblem& problem) const;

  /// Sums the gradient of gathered keys, [tiles * B, 1, X], over the tiles of a block, and adds it to
  /// `gradient` [Tk, key heads, X], float32. The order of the sum is fixed.
  void add_key_gradient(at::Tensor gradient, const at::Tensor& gathered, const at::Tensor& rows) const;
};

}  // namespace moba::torch_ops::portable
