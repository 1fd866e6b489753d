// Launchers of the forward pass: raw pointers, strides in elements, everything on one stream.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/inverse.h"
#include "moba/tensor.h"

namespace moba::cuda {

/// Which query heads a selection head serves. HS selection heads, HK key/value heads, H query heads; HS is H, HK or 1.
struct HeadGroups {
  std::int32_t heads_per_list = 1;  // H / HS
  std::int32_t units_per_list = 1;  // key/value heads among them, at least 1: work items are taken once for each
  std::int32_t heads_per_unit = 1;  // query heads that share both list and key/value head
  std::int32_t heads_per_kv = 1;    // H / HK
};

/// Partial results of a slice: out [heads, budget, rows, D] in the dtype of q, lse float32 [heads, budget, rows], where
/// heads are the query heads of the slice's lists: work goes head by head, so that what it writes lies together, and
/// neighbouring rows are merged together, slot by slot. The lse of a slot without a block has all bits set; up to three
/// floats before and behind what is asked for are read too. At most 2^32 - 1 slots, more than any Hopper GPU has room
/// for.
/// Columns lie in the order of the accumulators of wgmma.cuh, so that no lane exchanges any: of each 32 columns, lane l
/// of a quad has the eight from 8 * l on, and they are the columns 8 * j + 2 * l + c with 2 * j + c counting up.
struct Partials {
  void* out = nullptr;
  float* lse = nullptr;
  std::int64_t first_row = 0, rows = 0;
  std::int32_t first_head = 0, heads = 0;
  std::int32_t budget = 0;

  /// A slot of a row (counted from first_row) and a query head.
  constexpr std::int64_t place(std::int64_t row, std::int32_t head, std::int32_t slot) const {
    return (static_cast<std::int64_t>(head - first_head) * budget + slot) * rows + row;
  }
};

struct HistoryArgs {
  const void* q = nullptr;  // [Tq, H, D]
  std::int64_t q_row_stride = 0, q_head_stride = 0;
  const WorkItem* items = nullptr;
  const std::int32_t* item_count = nullptr;
  const std::uint32_t* entries = nullptr;
  std::int32_t* units_taken = nullptr;  // beyond those that thread blocks begin with; -1 at launch
  std::int32_t first_list = 0;
  std::int64_t block_size = 0;
  HeadGroups groups;
  Partials partials;
  float softmax_scale = 0.0f;
};

/// Rows of keys in a box of the maps of k and v, for blocks of this size.
int history_key_rows(std::int64_t block_size);
/// Query rows that are worked on together. Short heads leave registers for a third warpgroup of 64, which hides more of
/// the exponentials: they take as long as with long heads, beside half of the products.
constexpr int history_tile_rows(std::int64_t head_dim) {
  return head_dim == 64 ? 192 : 128;
}

/// Attention of gathered rows over the whole past blocks that they chose: one partial result for each entry.
/// Persistent: `max_units`, at least the number of items times units_per_list, only bounds the grid.
void launch_attend_history(cudaStream_t stream, DType dtype, std::int64_t head_dim, const HistoryArgs& args,
                           const CUtensorMap& k_map, const CUtensorMap& v_map, std::int64_t max_units);

/// Query rows and key rows in the boxes of the maps of q, k and v for the own blocks.
inline constexpr int kOwnRows = 64;
/// The rows that are worked on together, two or three times kOwnRows: where a slice begins at a multiple of them, its
/// results do not depend on that. In large blocks the products take the time, and three warpgroups hide more of it and
/// read keys and values less often; in small ones partial results do, and two leave more shared memory for what is on
/// its way.
constexpr int own_unit_rows(std::int64_t block_size) {
  return (block_size < 256 ? 2 : 3) * kOwnRows;
}

struct OwnArgs {
  const void* q = nullptr;  // [Tq, H, D]
  const void* k = nullptr;  // [Tk, HK, D]
  const void* v = nullptr;  // [Tk, HK, D]
  std::int64_t q_row_stride = 0, q_head_stride = 0;
  std::int64_t k_row_stride = 0, k_head_stride = 0;
  std::int64_t v_row_stride = 0, v_head_stride = 0;
  void* out = nullptr;  // [Tq, H, D]
  std::int64_t out_row_stride = 0, out_head_stride = 0;
  float* lse = nullptr;  // [H, Tq]
  std::int64_t lse_head_stride = 0;
  const SequenceSpan* sequences = nullptr;
  std::int64_t sequence_count = 0;
  std::int64_t first_row = 0, rows = 0;  // of the slice
  std::int64_t block_size = 0;
  std::int32_t heads_per_kv = 1;
  std::int32_t* units_taken = nullptr;  // beyond those that thread blocks begin with; -1 at launch
  Partials partials;                    // budget 0: nothing to merge
  float softmax_scale = 0.0f;
};

/// Causal attention inside each row's own block, merged with the row's partial results in slot order: out and lse of
/// the slice's rows that a sequence holds.
void launch_attend_own(cudaStream_t stream, DType dtype, std::int64_t head_dim, const OwnArgs& args,
                       const CUtensorMap& q_map, const CUtensorMap& k_map, const CUtensorMap& v_map);

/// {0, -inf} for the rows of [0, rows) that no sequence holds, all `heads`.
void launch_fill_unheld_rows(cudaStream_t stream, DType dtype, std::int64_t head_dim, const OwnArgs& args,
                             std::int64_t rows, std::int32_t heads);

}  // namespace moba::cuda
