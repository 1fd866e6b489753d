// Where sequences and blocks of a packed batch lie, as tables in device memory, and the transpose of a list of blocks
// with the work list of block-major kernels. All is made on the stream from shapes alone: the host reads nothing back.
#pragma once

#include <cstdint>

#include "moba/backend.h"
#include "scratch.h"

namespace moba::cuda {

/// One sequence, clamped into the tensors by the rule of src/sequences.h. Row r of it stands at position
/// r - q_begin + k_length - q_length; below 0 it sees no key.
struct SequenceSpan {
  std::int64_t q_begin, q_length;
  std::int64_t k_begin, k_length;
};

/// The keys of one block row: packed keys [first_key, first_key + keys). keys == 0 where no block owns the row.
struct BlockSpan {
  std::int64_t first_key;
  std::int32_t keys;
  std::int32_t sequence;
};

/// A run of the rows that chose one block: entries [begin, begin + count) of the slice, in row order.
struct WorkItem {
  std::int64_t begin;
  std::int64_t first_key;  // of the block, as in BlockSpan
  std::int32_t count;      // from 1 to item_rows
  std::int32_t keys;       // of the block; a listed block is wholly past, so this is the block size
  std::int32_t list;       // selection head, counted from the slice's first
  std::int32_t block_row;
};

/// An entry of the inverse: (packed row - first row of the slice) << kSlotBits | slot.
inline constexpr int kSlotBits = 6;
inline constexpr std::int64_t kMaxBudget = (std::int64_t{1} << kSlotBits) - 1;
inline constexpr std::int64_t kMaxSliceRows = std::int64_t{1} << (32 - kSlotBits);
/// From one row of a list to the next, so that 32 bits hold the places of 256 rows.
inline constexpr std::int64_t kMaxListRowStride = std::int64_t{1} << 23;

/// Packed rows [first_row, first_row + rows) and selection heads [first_list, first_list + lists) of one pass.
struct Slice {
  std::int64_t first_row = 0, rows = 0;
  std::int64_t first_list = 0, lists = 0;
};

/// The tables of sequences and blocks. One launch or two; sets bits of the context's error word where cu_seqlens was
/// clamped.
class BlockMap {
 public:
  /// Either cu_seqlens may be absent where only the other side is needed.
  BlockMap(Context& context, const PackedBatch& batch, std::int64_t total_q, std::int64_t total_k,
           std::int64_t block_size);

  const SequenceSpan* sequences() const { return sequences_.data(); }  // device [sequence_count]
  std::int64_t sequence_count() const { return sequences_.size(); }
  const BlockSpan* blocks() const { return blocks_.data(); }  // device [block_rows]
  std::int64_t block_rows() const { return blocks_.size(); }
  std::int64_t block_size() const { return block_size_; }

 private:
  std::int64_t block_size_;
  Scratch<SequenceSpan> sequences_;
  Scratch<BlockSpan> blocks_;
};

/// The transpose of one slice of a list: for each (selection head, block row), a "bin" list * block_rows + block_row,
/// the rows that chose the block, in row order. By counting, without a sort; the same bits each time.
class BlockInverse {
 public:
  /// Room for slices up to `largest` in rows and lists. `item_rows`, a multiple of the kernel's row tile, is the most
  /// entries of a work item: blocks more popular than that are cut into several.
  BlockInverse(Context& context, const BlockMap& map, const Selection& selection, const Slice& largest,
               std::int64_t item_rows);

  /// Bytes of scratch that a slice needs, for callers that cut their work to Context::workspace_limit.
  static std::int64_t bytes(const Slice& slice, std::int64_t budget, std::int64_t block_rows, std::int64_t item_rows);

  /// Launches the build for one slice; what was built before is overwritten, in stream order.
  void build(const Slice& slice);

  /// The public form of the inverse, without work items, into the caller's tensors.
  static void build_pairs(Context& context, const BlockMap& map, const Selection& selection, const Slice& slice,
                          const Inverse& inverse);

  // All in device memory, valid for the slice last built.
  const std::int64_t* offsets() const { return offsets_.data(); }        // [lists * block_rows + 1]
  const std::uint32_t* entries() const { return entries_.data(); }       // [offsets.back()]
  const WorkItem* items() const { return items_.data(); }                // [*item_count]; by bin, then by begin
  const std::int32_t* first_item() const { return first_item_.data(); }  // [lists * block_rows + 1]: items of a bin
  const std::int32_t* item_count() const { return first_item_.data() + bins_; }
  /// No slice of this shape has more items: a bound for grids and for partial sums, known to the host.
  std::int64_t max_items() const { return max_items_; }

 private:
  Context& context_;
  const BlockMap& map_;
  Selection selection_;
  std::int64_t item_rows_;
  std::int64_t bins_ = 0, max_items_ = 0;
  Scratch<std::int64_t> offsets_;
  Scratch<std::uint32_t> entries_;
  Scratch<std::int32_t> first_item_;
  Scratch<WorkItem> items_;
  Scratch<std::uint32_t> counts_;  // [lists, segments, block_rows], and totals [lists, block_rows]
};

}  // namespace moba::cuda
