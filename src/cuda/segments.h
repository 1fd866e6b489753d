// How the build of an inverse is cut into segments, and what that takes of scratch.
#pragma once

#include <cstdint>

#include "cuda/inverse.h"

namespace moba::cuda {

/// Rows of one list that a block of threads counts and writes together: a multiple of 256, below 2^16.
std::int64_t segment_rows_for(const Slice& slice, std::int64_t budget, std::int64_t block_rows);

/// Words of the counts of every (list, segment, block row), for this slice or any with fewer rows or lists.
std::int64_t count_words(const Slice& slice, std::int64_t budget, std::int64_t block_rows);

/// No slice of this shape has more work items of at most `item_rows` entries.
std::int64_t items_for(const Slice& slice, std::int64_t budget, std::int64_t block_rows, std::int64_t item_rows);

}  // namespace moba::cuda
