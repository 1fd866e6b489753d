// Representatives of a sequence's blocks as operands: as they lie or, where pages part them, copied together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/problem.h"
#include "token_rows.h"

namespace moba::cpu {

class BlockRows {
 public:
  /// For calls of at most `most` blocks.
  BlockRows(Context& context, const ConstTensorView& representatives, const PageTable& table, std::int64_t block_size,
            std::int64_t most)
      : context_(context),
        representatives_(representatives),
        table_(table),
        block_size_(block_size),
        gathered_(context, bytes(representatives, table, most), "representatives out of pages") {}

  static std::int64_t bytes(const ConstTensorView& representatives, const PageTable& table, std::int64_t most) {
    return table.present() ? most * representatives.shape[2] * size_of(representatives.dtype) : 0;
  }

  /// Those of the blocks [first, first + count) of a key/value head; valid until the next call.
  Rows operator()(const Sequence& sequence, std::int64_t first, std::int64_t count, std::int64_t kv_head) const {
    const TokenRows place(context_, table_, sequence, representatives_.shape[0]);
    if (!table_.present()) return rows_of(representatives_, place.block_row(first, block_size_), kv_head, count);
    const std::int64_t size = representatives_.shape[2] * size_of(representatives_.dtype);
    for (std::int64_t i = 0; i < count; ++i) {
      const Rows row = rows_of(representatives_, place.block_row(first + i, block_size_), kv_head, 1);
      std::memcpy(gathered_.data() + i * size, row.data, static_cast<std::size_t>(size));
    }
    return {representatives_.dtype, gathered_.data(), representatives_.shape[2], count, representatives_.shape[2]};
  }

  std::int64_t heads() const { return representatives_.shape[1]; }

 private:
  Context& context_;
  const ConstTensorView& representatives_;
  const PageTable& table_;
  std::int64_t block_size_;
  Scratch<std::byte> gathered_;
};

}  // namespace moba::cpu
