// How a pass over a list is cut so that its scratch fits the caller's limit, and how work items are sized.
#pragma once

#include <cstdint>

#include "cuda/attend.h"
#include "cuda/inverse.h"

namespace moba::cuda {

/// H query heads, HK key/value heads and HS selection heads as kernels want them.
HeadGroups head_groups(std::int64_t heads, std::int64_t kv_heads, std::int64_t selection_heads);

/// A multiple of history_tile_rows(): work items of so many entries that a slice makes several for each multiprocessor,
/// within what a block can fill. Where a block is streamed once for every tile of rows, items are small: then several
/// multiprocessors read the same block at a time, and what all of them read fits the L2 cache.
std::int64_t item_rows_for(const Slice& slice, std::int64_t budget, std::int64_t block_size, std::int64_t head_dim,
                           const HeadGroups& groups, int multiprocessors);

/// The largest slice of [rows, lists] whose inverse and `pair_bytes` for each (row, list, slot) fit in `limit`: whole
/// lists first, since a list's rows share its blocks; then rows, in multiples of `row_tile`. Error (kWorkspace) where
/// not even one row tile of one list fits.
Slice largest_slice(std::int64_t rows, std::int64_t lists, std::int64_t budget, std::int64_t block_rows,
                    std::int64_t item_rows, std::int64_t pair_bytes, std::int64_t row_tile, std::int64_t limit);

}  // namespace moba::cuda
