// The past-block part of list attention: query-block pairs sorted by block, so that each block meets its rows at once.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

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
};

/// The pairs of list slots [begin, begin + slots), in chunks that `slots_that_fit` sizes.
///
/// A pair is (row, query head, slot). Sorted by (key head, block row), stable, they are cut into tiles of at most
/// `tile_rows` pairs of one block. A tile is a segment: its queries, gathered, beside its block's keys, gathered. So no
/// segment is much longer than the others, however popular a block is, and the bound on its length does not launch
/// thousands of idle thread blocks. Pairs of padding (-1) come last, in tiles without keys.
struct HistoryChunk {
  std::int64_t slots = 0;
  at::Tensor query_rows;   // int64 [pairs]: row * H + head of each sorted pair
  at::Tensor inverse;      // int64 [Tq * H, slots]: where each pair stands in sorted order
  at::Tensor key_rows;     // int64 [tiles * B]: key token * HK + key head, tile by tile
  at::Tensor block_tiles;  // int64 [blocks + 1]: first tile of each block that has one, then empty ranges
  Segments segments;

  HistoryChunk(const HistoryProblem& problem, std::int64_t begin, std::int64_t slots);

  std::int64_t tiles() const { return segments.cu_q.size(0) - 1; }

  /// Sums the gradient of gathered keys, [tiles * B, 1, X], over the tiles of a block, and adds it to
  /// `gradient` [Tk * HK, X], float32. The order of the sum is fixed.
  void add_key_gradient(at::Tensor& gradient, const at::Tensor& gathered) const;
};

/// How many slots of a list may be worked off at once within `bytes`, at least 1; `pair_bytes` is the scratch of a
/// pair.
std::int64_t slots_that_fit(const HistoryProblem& problem, std::int64_t pair_bytes, std::int64_t bytes);

}  // namespace moba::torch_ops::portable
