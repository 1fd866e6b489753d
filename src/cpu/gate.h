// The gate: products of query rows with block representatives, a tile at a time. Shared by `score` and `select`.
//
// A score is one chain of additions over the heads of a list and the head dim, in that order, whatever the tile: one
// shot, chunked prefill and decode therefore choose the same blocks, bit for bit.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/block_rows.h"
#include "cpu/head_fold.h"

namespace moba::cpu {

// Rows of a task: packing a tile of representatives is 1% of its products.
inline constexpr std::int64_t kGateRows = 512;

/// Scores of rows of one list of one sequence; what one thread needs.
class Gate {
 public:
  /// Representatives of one product, where no row has more than `most_past` past blocks.
  static std::int64_t blocks_of_tile(std::int64_t most_past) {
    return std::min<std::int64_t>(256, panels(std::max<std::int64_t>(1, most_past)) * kPanel);
  }

  /// For up to `rows` rows at a time, none of which has more than `most_past` past blocks. `heads_of_list` query heads
  /// share a list, each with its own representatives' head, as the rule says.
  Gate(Context& context, const ConstTensorView& q, const BlockRows& representatives, std::int64_t rows,
       std::int64_t most_past, std::int64_t heads_of_list, const ChoiceRule& rule)
      : q_(q),
        representatives_(representatives),
        dim_(q.shape[2]),
        row_(padded(dim_)),
        heads_of_list_(heads_of_list),
        tile_(blocks_of_tile(most_past)),
        kernels_(kernels()),
        queries_(context, rows * heads_of_list * row_, "query rows"),
        packed_(context, tile_ * row_, "a tile of representatives"),
        staging_(context, 4 * row_, "representatives to transpose"),
        scores_(context, kRowTile * tile_, "a tile of scores"),
        fold_(context, rule, heads_of_list, rows),
        products_(context, fold_.is_plain_sum() ? 0 : kRowTile * tile_, "a tile of one head's products") {}

  static std::int64_t bytes(std::int64_t dim, std::int64_t rows, std::int64_t most_past, std::int64_t heads_of_list,
                            const ChoiceRule& rule) {
    const std::int64_t tile = blocks_of_tile(most_past), tiles = HeadFold::is_plain_sum(rule, heads_of_list) ? 1 : 2;
    return 4 * ((rows * heads_of_list + tile + 4) * padded(dim) + tiles * kRowTile * tile) +
           HeadFold::bytes(rule, heads_of_list, rows);
  }

  /// Calls use(row, first block, count, scores) for tiles of past blocks in ascending order, for each of the packed
  /// rows [row_begin, row_begin + rows) of list `list` (of q.heads / heads_of_list).
  template <class Use>
  void run(const Sequence& sequence, std::int64_t block_size, std::int64_t list, std::int64_t row_begin,
           std::int64_t rows, Use&& use) {
    for (std::int64_t h = 0; h < heads_of_list_; ++h) {
      kernels_.load_rows(rows_of(q_, row_begin, list * heads_of_list_ + h, rows), 1.0f,
                         queries_.data() + h * rows * row_, row_);
    }
    const auto past = [&](std::int64_t row) { return std::max<std::int64_t>(0, sequence.position(row)) / block_size; };
    // Calls each(tile) for every tile of rows and past blocks.
    const auto for_each_tile = [&](auto&& each) {
      const std::int64_t most = past(row_begin + rows - 1);
      for (std::int64_t block = 0; block < most; block += tile_) {
        const std::int64_t count = std::min(tile_, most - block);
        for (std::int64_t first = 0; first < rows; first += kRowTile) {
          const std::int64_t here = std::min(kRowTile, rows - first);
          const std::int64_t seen = std::min(count, past(row_begin + first + here - 1) - block);
          if (seen > 0) each(Tile{sequence, block, count, first, here, seen, rows});
        }
      }
    };
    // Calls each(row of the run, row of the tile, its visible blocks).
    const auto for_each_row = [&](const Tile& tile, auto&& each) {
      for (std::int64_t i = 0; i < tile.rows; ++i) {
        const std::int64_t visible = std::min(tile.count, past(row_begin + tile.first + i) - tile.block);
        if (visible > 0) each(tile.first + i, i, visible);
      }
    };

    if (fold_.needs_totals()) {
      fold_.begin();
      for_each_tile([&](const Tile& tile) {
        for (std::int64_t h = 0; h < heads_of_list_; ++h) {
          multiply(tile, list, h, products_.data(), false);
          for_each_row(tile, [&](std::int64_t row, std::int64_t i, std::int64_t visible) {
            fold_.measure(h, row, products_.data() + i * tile_, 1, visible);
          });
        }
      });
    }
    for_each_tile([&](const Tile& tile) {
      for (std::int64_t h = 0; h < heads_of_list_; ++h) {
        if (fold_.is_plain_sum()) {
          multiply(tile, list, h, scores_.data(), h > 0);
          continue;
        }
        multiply(tile, list, h, products_.data(), false);
        for_each_row(tile, [&](std::int64_t row, std::int64_t i, std::int64_t visible) {
          fold_.fold(h, row, products_.data() + i * tile_, scores_.data() + i * tile_, 1, visible);
        });
      }
      for_each_row(tile, [&](std::int64_t row, std::int64_t i, std::int64_t visible) {
        use(row_begin + row, tile.block, visible, scores_.data() + i * tile_);
      });
    });
  }

 private:
  /// Rows [first, first + rows) of a run of `run_rows` beside the blocks [block, block + count), of which its last row
  /// sees the first `seen`.
  struct Tile {
    Sequence sequence;
    std::int64_t block, count;
    std::int64_t first, rows, seen, run_rows;
  };

  void multiply(const Tile& tile, std::int64_t list, std::int64_t h, float* to, bool accumulate) {
    pack(tile.sequence, tile.block, tile.count, list * heads_of_list_ + h);
    kernels_.multiply({.m = tile.rows,
                       .n = tile.seen,
                       .k = dim_,
                       .a = queries_.data() + (h * tile.run_rows + tile.first) * row_,
                       .a_row = row_,
                       .b = packed_.data(),
                       .b_panel_stride = dim_ * kPanel,
                       .c = to,
                       .c_row = tile_,
                       .accumulate = accumulate});
  }

  /// Packs representatives [first, first + count) for a query head, unless they are what is packed already.
  void pack(const Sequence& sequence, std::int64_t first, std::int64_t count, std::int64_t head) {
    const std::int64_t kv_head = head * representatives_.heads() / q_.shape[1];
    if (sequence.index == packed_sequence_ && first == packed_first_ && count == packed_count_ &&
        kv_head == packed_head_) {
      return;
    }
    kernels_.pack_transposed(representatives_(sequence, first, count, kv_head), staging_.data(), packed_.data());
    packed_sequence_ = sequence.index;
    packed_first_ = first;
    packed_count_ = count;
    packed_head_ = kv_head;
  }

  const ConstTensorView& q_;
  const BlockRows& representatives_;
  std::int64_t dim_, row_, heads_of_list_, tile_;
  const Kernels& kernels_;
  Scratch<float> queries_, packed_, staging_, scores_;
  HeadFold fold_;
  Scratch<float> products_;
  std::int64_t packed_sequence_ = -1, packed_first_ = -1, packed_count_ = -1, packed_head_ = -1;
};

}  // namespace moba::cpu
