// Walks the (rows x keys) tiles that a chunk of query rows attends, in ascending order of keys. Used by the forward
// pass and by the pass of the backward that computes dq.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cpu/problem.h"

namespace moba::cpu {

/// For each past block, which rows of a chunk chose it: ids in ascending order. Made by counting, as `invert` is.
class BlockLists {
 public:
  /// Room for chunks of at most `ids` (rows times heads of a group) with last own block below `blocks`.
  BlockLists(Context& context, const Selection& selection, std::int64_t ids, std::int64_t blocks)
      : ends_(context, is_list(selection) ? blocks + 1 : 0, "rows of each block"),
        entries_(context, is_list(selection) ? ids * selection.budget() : 0, "rows of each block") {}

  static std::int64_t bytes(const Selection& selection, std::int64_t ids, std::int64_t blocks) {
    return is_list(selection) ? 4 * (blocks + 1 + ids * selection.budget()) : 0;
  }

  void fill(Context& context, const Selection& selection, const Sequence& sequence, const Chunk& chunk,
            std::int64_t kv_head, const Dims& dims) {
    const std::int64_t last = sequence.position(chunk.row_begin + chunk.rows - 1) / selection.block_size;
    const auto for_each_entry = [&](auto&& use) {
      for (std::int64_t h = 0; h < dims.group; ++h) {
        const std::int64_t selection_head = (kv_head * dims.group + h) * selection.selection_heads() / dims.heads;
        for (std::int64_t r = 0; r < chunk.rows; ++r) {
          const std::int64_t row = chunk.row_begin + r;
          for_each_listed_block(context, selection, row, selection_head, sequence.position(row) / selection.block_size,
                                [&](std::int64_t, std::int64_t block) { use(block, h * chunk.rows + r); });
        }
      }
    };
    // ends_[b + 1] counts block b, then says where b begins, and after filling where it ends.
    std::fill_n(ends_.data(), last + 1, 0);
    for_each_entry([&](std::int64_t block, std::int64_t) { ++ends_[block + 1]; });
    std::int32_t begin = 0;
    for (std::int64_t block = 0; block < last; ++block) begin += std::exchange(ends_[block + 1], begin);
    for_each_entry(
        [&](std::int64_t block, std::int64_t id) { entries_[ends_[block + 1]++] = static_cast<std::int32_t>(id); });
  }

  const std::int32_t* begin(std::int64_t block) const { return entries_.data() + ends_[block]; }
  std::int64_t count(std::int64_t block) const { return ends_[block + 1] - ends_[block]; }

 private:
  static bool is_list(const Selection& selection) { return selection.kind == SelectionKind::kList; }

  Scratch<std::int32_t> ends_;
  Scratch<std::int32_t> entries_;
};

/// At most kCapacity rows against one tile of keys: row i has the id ids[i] and sees the columns [begin[i], end[i]).
struct RowTile {
  static constexpr std::int64_t kCapacity = std::max(kRowTile, kPairRows);
  std::int32_t ids[kCapacity];
  std::int32_t begin[kCapacity];
  std::int32_t end[kCapacity];
  std::int64_t count = 0;

  std::int64_t first_column() const { return *std::min_element(begin, begin + count); }
  std::int64_t end_column() const { return *std::max_element(end, end + count); }
};

/// The most rows and the most keys of a tile.
struct TileShape {
  std::int64_t rows = kRowTile, keys = kKeyTile;
};

/// Calls visit(tile) for the rows [row_begin, row_begin + rows) of every head of the group against the keys
/// [key_begin, key_begin + keys), row_tile rows at a time. range(position) gives the positions {begin, end} that a row
/// sees.
template <class Range, class Visit>
void visit_runs(const Sequence& sequence, const Chunk& chunk, std::int64_t group, std::int64_t row_begin,
                std::int64_t rows, std::int64_t row_tile, std::int64_t key_begin, std::int64_t keys, Range&& range,
                Visit&& visit) {
  RowTile tile;
  for (std::int64_t h = 0; h < group; ++h) {
    for (std::int64_t first = row_begin; first < row_begin + rows; first += row_tile) {
      const std::int64_t here = std::min(row_tile, row_begin + rows - first);
      tile.count = 0;
      for (std::int64_t r = first; r < first + here; ++r) {
        const auto [begin, end] = range(sequence.position(r));
        const std::int64_t low = std::max(begin, key_begin) - key_begin;
        const std::int64_t high = std::min(end, key_begin + keys) - key_begin;
        if (low >= high) continue;
        tile.ids[tile.count] = static_cast<std::int32_t>(h * chunk.rows + r - chunk.row_begin);
        tile.begin[tile.count] = static_cast<std::int32_t>(low);
        tile.end[tile.count++] = static_cast<std::int32_t>(high);
      }
      if (tile.count > 0) visit(tile);
    }
  }
}

struct KeyRange {
  std::int64_t begin, end;
};

/// The part of kAll and kSpan that a key segment stands for: kSpan has the sink and the rest, each tiled from its own
/// beginning, so that a row sees one range of every tile.
struct KeySegment {
  std::int64_t begin, end;  // positions
  std::int64_t window;      // a row at p sees [p + 1 - window, p] of it

  KeyRange seen_from(std::int64_t position) const {
    const std::int64_t low = window > position ? 0 : position + 1 - window;
    return {std::max(begin, low), std::min(end, position + 1)};
  }
};

/// Calls use(segment) for the segments of keys [0, length) of a kAll or kSpan selection.
template <class Use>
void for_each_segment(const Selection& selection, std::int64_t length, Use&& use) {
  const bool is_all = selection.kind == SelectionKind::kAll;
  const std::int64_t everything = length;
  const std::int64_t sink = is_all ? 0 : std::min(selection.sink, length);
  if (sink > 0) use(KeySegment{0, sink, everything});
  if (sink < length) use(KeySegment{sink, length, is_all ? everything : selection.window});
}

/// load(position, count) makes keys ready; visit(tile) is then called for all rows that see some of them.
template <class Load, class Visit>
void for_each_tile(const Selection& selection, const Sequence& sequence, const Chunk& chunk, const Dims& dims,
                   const BlockLists& lists, const TileShape& shape, Load&& load, Visit&& visit) {
  const std::int64_t key_tile = shape.keys;
  const std::int64_t first_position = sequence.position(chunk.row_begin);
  const std::int64_t last_position = first_position + chunk.rows - 1;

  if (selection.kind != SelectionKind::kList) {
    for_each_segment(selection, sequence.k_length, [&](const KeySegment& segment) {
      const std::int64_t low = std::max(segment.seen_from(first_position).begin, chunk.key_begin);
      const std::int64_t high = std::min(segment.seen_from(last_position).end, chunk.key_end);
      const std::int64_t start = segment.begin + std::max<std::int64_t>(0, low - segment.begin) / key_tile * key_tile;
      for (std::int64_t key = start; key < high; key += key_tile) {
        const std::int64_t keys = std::min(key_tile, high - key);
        load(key, keys);
        const auto range = [&](std::int64_t position) {
          const KeyRange seen = segment.seen_from(position);
          return KeyRange{std::max(seen.begin, chunk.key_begin), seen.end};
        };
        visit_runs(sequence, chunk, dims.group, chunk.row_begin, chunk.rows, shape.rows, key, keys, range, visit);
      }
    });
    return;
  }

  const std::int64_t size = selection.block_size;
  RowTile tile;
  for (std::int64_t block = 0; block <= last_position / size; ++block) {
    // A row's own block comes after all its past ones, so one ascending walk serves both parts.
    const std::int64_t past_rows = block < last_position / size ? lists.count(block) : 0;
    const std::int64_t own_first = std::max(first_position, block * size);
    const std::int64_t own_last = std::min(last_position, (block + 1) * size - 1);
    const std::int64_t own_rows = std::max<std::int64_t>(0, own_last - own_first + 1);
    if (past_rows == 0 && own_rows == 0) continue;
    const std::int64_t end = past_rows > 0 ? (block + 1) * size : own_last + 1;
    for (std::int64_t key = block * size; key < end; key += key_tile) {
      const std::int64_t keys = std::min(key_tile, end - key);
      load(key, keys);
      for (std::int64_t first = 0; first < past_rows; first += shape.rows) {
        tile.count = std::min(shape.rows, past_rows - first);
        std::copy_n(lists.begin(block) + first, tile.count, tile.ids);
        std::fill_n(tile.begin, tile.count, 0);
        std::fill_n(tile.end, tile.count, static_cast<std::int32_t>(keys));
        visit(tile);
      }
      if (own_rows > 0) {
        const auto range = [&](std::int64_t position) { return KeyRange{block * size, position + 1}; };
        visit_runs(sequence, chunk, dims.group, chunk.row_begin + own_first - first_position, own_rows, shape.rows, key,
                   keys, range, visit);
      }
    }
  }
}

}  // namespace moba::cpu
