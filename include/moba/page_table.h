// Keys and values that lie in pages of a common pool instead of one after another.
#pragma once

#include <cstdint>

#include "moba/tensor.h"

namespace moba {

/// Where the tokens of each sequence lie. Position p of sequence s is the row
///
///     pages[s, p / page_size] * page_size + p % page_size
///
/// of k and of v, which then are the pool: [number of pages * page_size, HK, D]. `page_size` divides the block size, so
/// that a block is whole pages, and what belongs to a block (its representative) is found by its last page. Sequences
/// may share pages. `cu_seqlens_k` says nothing but the lengths. A default-made table is absent: rows are packed.
///
/// Worked example: page_size 2, pages {{5, 0}, {5, 3}}, lengths 4 and 3. Both sequences begin with the rows 10 and 11;
/// the first goes on with 0 and 1, the second with 6.
struct PageTable {
  ConstTensorView pages;  // int32 [sequences, most pages of a sequence]; entries behind a sequence's end are not read
  std::int64_t page_size = 0;

  bool present() const { return pages.present(); }
};

}  // namespace moba
