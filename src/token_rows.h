// Which rows of k and v hold the tokens of a sequence, and which rows of the representatives belong to its blocks:
// packed one after another, or in pages. Both host backends stand on this file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "moba/backend.h"
#include "sequences.h"

namespace moba {

/// The sequences of a batch whose keys may lie in pages of a pool with `key_rows` rows. In pages a sequence is at most
/// as long as a row of the table; its place among packed keys means nothing.
inline Sequences sequences_of(Context& context, PackedBatch batch, const PageTable& table, std::int64_t total_q,
                              std::int64_t key_rows) {
  if (!table.present()) return Sequences(context, batch, total_q, key_rows);
  const std::int64_t most = key_rows == 0 ? 0 : table.pages.shape[1] * table.page_size;
  batch.max_seqlen_k = std::min(batch.max_seqlen_k, most);
  return Sequences(context, batch, total_q, std::numeric_limits<std::int64_t>::max());
}

/// The sequences of `select`, whose keys are known by their representatives alone.
inline Sequences sequences_of(Context& context, const SelectArgs& args) {
  const std::int64_t blocks = args.representatives.shape[0], rows = args.q.shape[0];
  const bool in_pages = args.page_table.present();
  return sequences_of(context, args.batch, args.page_table, rows,
                      in_pages ? blocks * args.page_table.page_size
                               : most_keys(blocks, args.batch.sequences(), args.selection.block_size));
}

/// An upper bound of the past blocks of a row, known without the sequences.
inline std::int64_t most_past_blocks(const SelectArgs& args) {
  if (!args.page_table.present()) return args.representatives.shape[0] - 1;
  const std::int64_t capacity = args.page_table.pages.shape[1] * args.page_table.page_size;
  return std::min(args.batch.max_seqlen_k, capacity) / args.selection.block_size;
}

/// The places of one sequence. A page that the pool does not have is clamped to it and sets kPageOutOfRange.
class TokenRows {
 public:
  /// `pages` of the pool; not used without a table.
  TokenRows(Context& context, const PageTable& table, const Sequence& sequence, std::int64_t pages)
      : context_(&context), sequence_(sequence), page_size_(table.present() ? table.page_size : 0), pages_(pages) {
    if (page_size_ == 0 || table.pages.shape[1] == 0) return;  // a table without pages may lie nowhere
    row_ = table.pages.as<std::int32_t>() + sequence.index * table.pages.stride[0];
  }

  struct Run {
    std::int64_t row, count;
  };
  /// The longest run of neighbouring rows that holds the tokens from `position` < `end` on, `end` excluded.
  Run run(std::int64_t position, std::int64_t end) const {
    if (page_size_ == 0) return {sequence_.k_begin + position, end - position};
    std::int64_t index = position / page_size_, last = page(index);
    const Run first{last * page_size_ + position % page_size_, page_size_ - position % page_size_};
    std::int64_t count = first.count;
    for (; count < end - position && page(++index) == last + 1; ++last) count += page_size_;
    return {first.row, std::min(count, end - position)};
  }
  std::int64_t row(std::int64_t position) const { return run(position, position + 1).row; }

  /// The row of a whole block's representative: that of the page which holds its last token.
  std::int64_t block_row(std::int64_t block, std::int64_t block_size) const {
    return page_size_ == 0 ? sequence_.first_block_row(block_size) + block
                           : page((block + 1) * (block_size / page_size_) - 1);
  }

 private:
  std::int64_t page(std::int64_t index) const {
    const std::int64_t page = row_[index];
    if (page >= 0 && page < pages_) return page;
    report_device_error(*context_, kPageOutOfRange);
    return std::clamp<std::int64_t>(page, 0, pages_ - 1);
  }

  Context* context_;
  Sequence sequence_;
  std::int64_t page_size_, pages_;
  const std::int32_t* row_ = nullptr;  // of the table
};

/// How many pages k, the pool of a table, has.
inline std::int64_t pages_of(const ConstTensorView& k, const PageTable& table) {
  return table.present() ? k.shape[0] / table.page_size : 0;
}

}  // namespace moba
