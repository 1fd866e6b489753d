// Where the sequences, rows and blocks of a packed batch lie, read once from cu_seqlens and clamped into the tensors;
// and which keys a Selection lets a row see. Both host backends stand on this file, so that they agree on every edge.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>

#include "moba/backend.h"
#include "scratch.h"

namespace moba {

/// Sets a bit of `Context::error_word`, from any thread.
inline void report_device_error(Context& context, DeviceError bit) {
  if (std::int32_t* word = context.error_word()) {
    std::atomic_ref<std::int32_t>(*word).fetch_or(bit, std::memory_order_relaxed);
  }
}

/// One sequence: its queries are the packed rows [q_begin, q_begin + q_length), its keys likewise.
struct Sequence {
  std::int64_t index = 0;
  std::int64_t q_begin = 0, q_length = 0;
  std::int64_t k_begin = 0, k_length = 0;

  /// The position of a packed row among the keys: queries are aligned to the end of the keys. Negative: sees no key.
  std::int64_t position(std::int64_t row) const { return row - q_begin + k_length - q_length; }
  std::int64_t blocks(std::int64_t block_size) const {
    return k_length / block_size + (k_length % block_size > 0);  // the sum with a block size near 2^63 would overflow
  }
  /// The row of block 0 in `representatives`; see block_rows().
  std::int64_t first_block_row(std::int64_t block_size) const { return k_begin / block_size + index; }
};

/// The sequences of a packed batch. Every offset is clamped to [its predecessor, total] and every length to its
/// maximum; where that changes something a bit is set in the error word. Rows that no sequence holds see no key.
class Sequences {
 public:
  /// Pass an absent cu_seqlens_q (or cu_seqlens_k) where only the other side is needed.
  Sequences(Context& context, const PackedBatch& batch, std::int64_t total_q, std::int64_t total_k)
      : count_(offsets_of(batch).shape[0] - 1), q_(context, count_ * 2, "offsets"), k_(context, count_ * 2, "offsets") {
    read(context, batch.cu_seqlens_q, total_q, batch.max_seqlen_q, q_.data());
    read(context, batch.cu_seqlens_k, total_k, batch.max_seqlen_k, k_.data());
  }

  /// Scratch that it holds.
  static std::int64_t bytes(const PackedBatch& batch) {
    return (offsets_of(batch).shape[0] - 1) * 4 * static_cast<std::int64_t>(sizeof(std::int64_t));
  }

  std::int64_t count() const { return count_; }
  Sequence operator[](std::int64_t s) const { return {s, q_[2 * s], q_[2 * s + 1], k_[2 * s], k_[2 * s + 1]}; }

  /// The sequence whose queries hold the packed row, or -1.
  std::int64_t of_row(std::int64_t row) const {
    std::int64_t low = 0, high = count_;  // the first sequence that begins after the row is in [low, high]
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (q_[2 * middle] <= row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    // Empty sequences share their begin with the next one that is not, so the last beginning is the one to ask.
    return low > 0 && row < q_[2 * (low - 1)] + q_[2 * (low - 1) + 1] ? low - 1 : -1;
  }

 private:
  static const ConstTensorView& offsets_of(const PackedBatch& batch) {
    return batch.cu_seqlens_k.present() ? batch.cu_seqlens_k : batch.cu_seqlens_q;
  }

  void read(Context& context, const ConstTensorView& offsets, std::int64_t total, std::int64_t maximum,
            std::int64_t* begin_and_length) const {
    if (!offsets.present()) {
      std::fill(begin_and_length, begin_and_length + 2 * count_, std::int64_t{0});
      return;
    }
    const auto value = [&](std::int64_t i) {
      return offsets.dtype == DType::kInt32
                 ? static_cast<std::int64_t>(offsets.as<std::int32_t>()[i * offsets.stride[0]])
                 : offsets.as<std::int64_t>()[i * offsets.stride[0]];
    };
    const auto clamped = [&](std::int64_t i, std::int64_t previous) {
      const std::int64_t offset = std::clamp(value(i), previous, total);
      if (offset != value(i)) report_device_error(context, kCuSeqlensOutOfRange);
      return offset;
    };
    std::int64_t begin = clamped(0, 0);
    for (std::int64_t s = 0; s < count_; ++s) {
      const std::int64_t end = clamped(s + 1, begin);
      if (end - begin > maximum) report_device_error(context, kSeqlenAboveMaximum);
      begin_and_length[2 * s] = begin;
      begin_and_length[2 * s + 1] = std::min(end - begin, maximum);
      begin = end;
    }
  }

  std::int64_t count_;
  Scratch<std::int64_t> q_, k_;  // begin, length of each sequence
};

/// The most keys whose blocks fit in that many rows of representatives: the inverse of block_rows(). Verbs that see the
/// representatives but not the keys clamp cu_seqlens_k to it, so that every block row lies in the tensor.
inline std::int64_t most_keys(std::int64_t representative_rows, std::int64_t sequences, std::int64_t block_size) {
  const std::int64_t blocks = representative_rows - sequences + 1;
  return blocks > std::numeric_limits<std::int64_t>::max() / block_size ? std::numeric_limits<std::int64_t>::max()
                                                                        : blocks * block_size - 1;
}

/// Calls use(slot, block) for each listed block of a packed row that may be attended: above the block listed before it
/// and below the row's own block. -1 is padding; any other entry is passed over and sets kSelectionOutOfRange.
template <class Use>
void for_each_listed_block(Context& context, const Selection& selection, std::int64_t row, std::int64_t selection_head,
                           std::int64_t own_block, Use&& use) {
  const TensorView& blocks = selection.blocks;
  if (selection.budget() == 0) return;  // such a list may have no memory
  const std::int32_t* list = blocks.as<std::int32_t>() + row * blocks.stride[0] + selection_head * blocks.stride[1];
  std::int64_t previous = -1;
  for (std::int64_t slot = 0; slot < selection.budget(); ++slot) {
    const std::int64_t block = list[slot];
    if (block > previous && block < own_block) {
      use(slot, block);
      previous = block;
    } else if (block != -1) {
      report_device_error(context, kSelectionOutOfRange);
    }
  }
}

/// Calls use(begin, end) for the ranges of positions, ascending and disjoint, whose keys the row sees; `position` is
/// the row's own (>= 0) and `head` a query head of `heads`.
template <class Use>
void for_each_key_range(Context& context, const Selection& selection, std::int64_t row, std::int64_t position,
                        std::int64_t head, std::int64_t heads, Use&& use) {
  switch (selection.kind) {
    case SelectionKind::kAll: use(std::int64_t{0}, position + 1); return;
    case SelectionKind::kSpan: {
      // position + 1 - window without overflow for a window near 2^63.
      const std::int64_t begin = selection.window > position ? 0 : position + 1 - selection.window;
      const std::int64_t sink = std::min(selection.sink, begin);
      if (sink > 0) use(std::int64_t{0}, sink);
      use(begin, position + 1);
      return;
    }
    case SelectionKind::kList: {
      const std::int64_t size = selection.block_size;
      const std::int64_t own_block = position / size;
      const std::int64_t selection_head = head * selection.selection_heads() / heads;
      for_each_listed_block(context, selection, row, selection_head, own_block,
                            [&](std::int64_t, std::int64_t block) { use(block * size, (block + 1) * size); });
      use(own_block * size, position + 1);
      return;
    }
  }
}

}  // namespace moba
