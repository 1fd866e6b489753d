#include "cuda/slices.h"

#include <algorithm>
#include <string>

#include "moba/error.h"

namespace moba::cuda {
namespace {

constexpr std::int64_t kMostItemRows = 1024;
constexpr std::int64_t kMostStreamedItemRows = 256;
/// Items that a multiprocessor should get: the last ones leave at most an eighth of it idle.
constexpr std::int64_t kItemsPerMultiprocessor = 8;

}  // namespace

HeadGroups head_groups(std::int64_t heads, std::int64_t kv_heads, std::int64_t selection_heads) {
  HeadGroups groups;
  groups.heads_per_list = static_cast<std::int32_t>(heads / selection_heads);
  groups.units_per_list = static_cast<std::int32_t>(std::max<std::int64_t>(kv_heads / selection_heads, 1));
  groups.heads_per_unit = groups.heads_per_list / groups.units_per_list;
  groups.heads_per_kv = static_cast<std::int32_t>(heads / kv_heads);
  return groups;
}

std::int64_t item_rows_for(const Slice& slice, std::int64_t budget, std::int64_t block_size, std::int64_t head_dim,
                           const HeadGroups& groups, int multiprocessors) {
  const std::int64_t entries = slice.rows * slice.lists * budget * groups.units_per_list;
  const bool streamed = block_size > history_key_rows(block_size);
  const std::int64_t share = entries / (multiprocessors * kItemsPerMultiprocessor);
  const std::int64_t tile = history_tile_rows(head_dim);
  const std::int64_t most_tiles = (streamed ? kMostStreamedItemRows : kMostItemRows) / tile;
  return std::clamp((share + tile - 1) / tile, std::int64_t{1}, most_tiles) * tile;
}

Slice largest_slice(std::int64_t rows, std::int64_t lists, std::int64_t budget, std::int64_t block_rows,
                    std::int64_t item_rows, std::int64_t pair_bytes, std::int64_t row_tile, std::int64_t limit) {
  const auto bytes = [&](const Slice& slice) {
    return BlockInverse::bytes(slice, budget, block_rows, item_rows) + slice.rows * slice.lists * budget * pair_bytes;
  };
  Slice slice;
  slice.rows = std::min(rows, kMaxSliceRows / row_tile * row_tile);
  slice.lists = lists;
  while (slice.lists > 1 && bytes(slice) > limit) {
    const std::int64_t slices = (lists + slice.lists - 1) / slice.lists;
    slice.lists = std::min(slice.lists - 1, (lists + slices) / (slices + 1));  // slices of equal size
  }
  while (slice.rows > row_tile && bytes(slice) > limit) {
    slice.rows = (slice.rows / 2 + row_tile - 1) / row_tile * row_tile;
  }
  if (bytes(slice) > limit) {
    throw Error(ErrorCode::kWorkspace, "workspace_limit is " + std::to_string(limit) + " bytes; it must be at least " +
                                           std::to_string(bytes(slice)) +
                                           " here (partial results of one tile of rows). Raise "
                                           "Context::workspace_limit.");
  }
  return slice;
}

}  // namespace moba::cuda
