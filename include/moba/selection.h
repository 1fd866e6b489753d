// Selection: which keys each query row attends. The one seam between policy (selectors) and work (backends).
#pragma once

#include <cstdint>

#include "moba/tensor.h"

namespace moba {

enum class SelectionKind : std::uint8_t {
  kAll,   // every key up to the row's own position
  kSpan,  // the first `sink` keys and exactly the last `window` keys, the row's own among them
  kList,  // the row's own block up to its own position, and the whole past blocks that `blocks` lists
};

/// Which keys each query row of each head attends. Every kind is causal. The kinds are never turned into one another.
///
/// Positions. Row r of sequence s stands at position p = r - cu_q[s] + (len_k(s) - len_q(s)): queries are aligned to
/// the end of the keys. Block i of a sequence covers its positions [i*B, min((i+1)*B, len_k)); the row's own block is p
/// / B.
///
/// `blocks` (kList) is int32 [ceil(rows / row_tile), selection_heads, budget]: block indices counted from the start of
/// the row's sequence, strictly ascending, then padded with -1; all below the row's own block, which is implied and
/// never listed. `selection_heads` is H (one choice per query head), HK (one per key/value head) or 1. Query head h
/// reads the list of selection head h * selection_heads / H. `budget` is the same for every row, so that no device has
/// to wait for the host: for MoBA it is top_k - 1.
///
/// Worked example: one sequence of 10 keys and 10 queries, B = 4, top_k = 2, one head. Blocks are {0-3}, {4-7}, {8,9}.
/// Rows 0-3 have own block 0 and the list (-1). Rows 4-7 have own block 1; only block 0 is past, so each lists (0).
/// Rows 8 and 9 have own block 2 and list the better of 0 and 1 by q·mean(k): say row 8 lists (0), row 9 lists (1).
/// Row 9 then attends keys 4-7 and 8-9.
struct Selection {
  SelectionKind kind = SelectionKind::kAll;

  // kSpan; in keys. window >= 1, sink >= 0.
  std::int64_t window = 0;
  std::int64_t sink = 0;

  // kList
  std::int64_t block_size = 0;
  std::int64_t row_tile = 1;  // consecutive packed rows that share a list; backends may support 1 only
  TensorView blocks;          // int32 [ceil(rows / row_tile), selection_heads, budget]

  std::int64_t selection_heads() const { return blocks.shape[1]; }
  std::int64_t budget() const { return blocks.shape[2]; }
};

/// The most whole blocks before a row's own in a sequence of at most that many keys.
constexpr std::int64_t most_past_blocks(std::int64_t max_seqlen_k, std::int64_t block_size) {
  return max_seqlen_k > 0 ? (max_seqlen_k - 1) / block_size : 0;
}

/// Rows set aside for the blocks of a packed batch without reading cu_seqlens: block i of sequence s has the row
/// cu_k[s] / B + s + i. Two sequences never share a row, since ceil(len / B) <= floor(len / B) + 1.
constexpr std::int64_t block_rows(std::int64_t total_keys, std::int64_t sequences, std::int64_t block_size) {
  return total_keys / block_size + sequences;
}

/// The transpose of a list: for each (selection head, block row) the query rows that chose it, in row order.
///
/// `offsets` is int64 [selection_heads * block_rows + 1]; entries of (head g, block row b) are
/// [offsets[g * block_rows + b], offsets[g * block_rows + b + 1]). `entries` is int32 [rows * selection_heads * budget,
/// 2], each (packed row, slot), so that a partial result has its own place; only the first offsets.back() are set.
///
/// In the example above (no own blocks in it): block 0 -> (4,0) (5,0) (6,0) (7,0) (8,0); block 1 -> (9,0); block 2 ->
/// none.
struct Inverse {
  TensorView offsets;
  TensorView entries;
};

}  // namespace moba
