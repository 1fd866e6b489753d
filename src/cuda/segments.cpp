#include "cuda/segments.h"

#include <algorithm>

namespace moba::cuda {
namespace {

/// 32 rows for each of 8 warps.
constexpr std::int64_t kFewestSegmentRows = 256;
/// A list of rows that are counted in 16 bits.
constexpr std::int64_t kMostSegmentRows = 32768;
/// Counts go to memory and come back: a segment should have so many times as many entries.
constexpr std::int64_t kEntriesForCount = 4;
/// Segments that keep 132 multiprocessors busy to the end.
constexpr std::int64_t kEnoughSegments = 16 * 132;

/// By the counts alone, whatever the slice.
std::int64_t fewest_rows(std::int64_t budget, std::int64_t block_rows) {
  std::int64_t rows = kFewestSegmentRows;
  while (rows < kMostSegmentRows && rows * budget < kEntriesForCount * block_rows) rows *= 2;
  return rows;
}

}  // namespace

std::int64_t segment_rows_for(const Slice& slice, std::int64_t budget, std::int64_t block_rows) {
  const std::int64_t all = slice.rows * slice.lists;
  std::int64_t rows = fewest_rows(budget, block_rows);
  while (rows < kMostSegmentRows && all > kEnoughSegments * rows) rows *= 2;
  return rows;
}

std::int64_t count_words(const Slice& slice, std::int64_t budget, std::int64_t block_rows) {
  const std::int64_t rows = slice.rows * slice.lists;
  const std::int64_t whole =
      std::max(std::min(rows / fewest_rows(budget, block_rows), kEnoughSegments), rows / kMostSegmentRows);
  return block_rows * (whole + 2 * slice.lists);  // the last segment of a list may be cut short; and the totals
}

std::int64_t items_for(const Slice& slice, std::int64_t budget, std::int64_t block_rows, std::int64_t item_rows) {
  return slice.lists * block_rows + slice.rows * slice.lists * budget / item_rows;
}

}  // namespace moba::cuda
