// The gate by products of bfloat16 pairs: scores [blocks][64 query rows], so that the best blocks of 64 rows are kept
// side by side. As in gate.h a score is one chain over the heads of a list and the head dim, whatever the tile.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/block_rows.h"
#include "cpu/head_fold.h"
#include "cpu/pairs.h"

namespace moba::cpu {

/// Scores of 64 rows (`lanes` of them real) against the blocks [block, block + count) of their sequence.
struct GateTile {
  std::int64_t row_begin, lanes;
  std::int64_t block, count;
  float* scores;             // [count][64]; what a row does not see is undefined
  const std::int32_t* past;  // [64]: each row's number of past blocks, ascending; 0 for lanes that are not real
};

class PairGate {
 public:
  /// With so few rows the lanes are blocks: 64 representatives are laid out for each product, and none is idle.
  static constexpr std::int64_t kFewRowsOfGate = 4;

  static bool serves(const ConstTensorView& q, const ConstTensorView& representatives) {
    return q.dtype == DType::kBFloat16 && representatives.dtype == DType::kBFloat16 && pair_kernels() != nullptr;
  }

  /// Blocks of a tile: all of them where no row has more than kMostBlocksOfTile in its past. Their scores stay in the
  /// second-level cache.
  static constexpr std::int64_t kMostBlocksOfTile = 512;
  static std::int64_t blocks_of_tile(std::int64_t most_past) {
    return std::min(kMostBlocksOfTile, panels(std::max<std::int64_t>(1, most_past)) * kPanel);
  }

  /// For up to `rows` rows at a time, none of which has more than `most_past` past blocks.
  PairGate(Context& context, const ConstTensorView& q, const BlockRows& representatives, std::int64_t rows,
           std::int64_t most_past, std::int64_t heads_of_list, const ChoiceRule& rule)
      : q_(q),
        representatives_(representatives),
        dim_(q.shape[2]),
        row_(pair_row(dim_)),
        heads_of_list_(heads_of_list),
        tile_(blocks_of_tile(most_past)),
        kernels_(*pair_kernels()),
        ready_(kernels_),
        blocks_(context, heads_of_list * tile_ * row_, "a tile of representatives"),
        lanes_(context, heads_of_list * row_ * kPairRows, "query rows"),
        scores_(context, tile_ * kPairRows, "a tile of scores"),
        fold_(context, rule, heads_of_list, rows),
        products_(context, fold_.is_plain_sum() ? 0 : tile_ * kPairRows, "a tile of one head's products") {}

  static std::int64_t bytes(std::int64_t dim, std::int64_t rows, std::int64_t most_past, std::int64_t heads_of_list,
                            const ChoiceRule& rule) {
    const std::int64_t tile = blocks_of_tile(most_past), tiles = HeadFold::is_plain_sum(rule, heads_of_list) ? 1 : 2;
    return 4 * (heads_of_list * pair_row(dim) * (tile + kPairRows) + tiles * tile * kPairRows) +
           HeadFold::bytes(rule, heads_of_list, rows);
  }

  /// Calls use(tile) for tiles of past blocks, in ascending order for each row, of the packed rows
  /// [row_begin, row_begin + rows) of list `list` (of q.heads / heads_of_list).
  template <class Use>
  void run_tiles(const Sequence& sequence, std::int64_t block_size, std::int64_t list, std::int64_t row_begin,
                 std::int64_t rows, Use&& use) {
    const auto past = [&](std::int64_t row) { return std::max<std::int64_t>(0, sequence.position(row)) / block_size; };
    const auto for_each_tile = [&](auto&& each) {
      const std::int64_t most = past(row_begin + rows - 1);
      for (std::int64_t block = 0; block < most; block += tile_) {
        load_blocks(sequence, block, std::min(tile_, most - block), list);
        for (std::int64_t first = row_begin; first < row_begin + rows; first += kPairRows) {
          const std::int64_t lanes = std::min(kPairRows, row_begin + rows - first);
          const std::int64_t end = std::min(block + tile_, past(first + lanes - 1));
          if (end <= block) continue;
          std::int32_t past_of_lane[kPairRows] = {};
          count_past(sequence, block_size, first, lanes, past_of_lane);
          load_rows(first, lanes, list);
          each(GateTile{first, lanes, block, end - block, scores_.data(), past_of_lane});
        }
      }
    };
    // Calls each(row of the run, lane, its visible blocks).
    const auto for_each_lane = [&](const GateTile& tile, auto&& each) {
      for (std::int64_t i = 0; i < tile.lanes; ++i) {
        const std::int64_t visible = std::min(tile.count, tile.past[i] - tile.block);
        if (visible > 0) each(tile.row_begin - row_begin + i, i, visible);
      }
    };

    if (fold_.needs_totals()) {
      fold_.begin();
      for_each_tile([&](const GateTile& tile) {
        for (std::int64_t h = 0; h < heads_of_list_; ++h) {
          multiply(h, tile, products_.data(), false);
          for_each_lane(tile, [&](std::int64_t row, std::int64_t i, std::int64_t visible) {
            fold_.measure(h, row, products_.data() + i, kPairRows, visible);
          });
        }
      });
    }
    for_each_tile([&](const GateTile& tile) {
      for (std::int64_t h = 0; h < heads_of_list_; ++h) {
        if (fold_.is_plain_sum()) {
          multiply(h, tile, scores_.data(), h > 0);
          continue;
        }
        multiply(h, tile, products_.data(), false);
        for_each_lane(tile, [&](std::int64_t row, std::int64_t i, std::int64_t visible) {
          fold_.fold(h, row, products_.data() + i, scores_.data() + i, kPairRows, visible);
        });
      }
      use(tile);
    });
  }

  /// The same as calls use(row, first block, count, scores) for each row.
  template <class Use>
  void run(const Sequence& sequence, std::int64_t block_size, std::int64_t list, std::int64_t row_begin,
           std::int64_t rows, Use&& use) {
    if (rows <= kFewRowsOfGate) {
      for (std::int64_t row = row_begin; row < row_begin + rows; ++row) run_row(sequence, block_size, list, row, use);
      return;
    }
    run_tiles(sequence, block_size, list, row_begin, rows, [&](const GateTile& tile) {
      float of_row[kMostBlocksOfTile];
      for (std::int64_t i = 0; i < tile.lanes; ++i) {
        const std::int64_t visible = std::min(tile.count, tile.past[i] - tile.block);
        for (std::int64_t b = 0; b < visible; ++b) of_row[b] = tile.scores[b * kPairRows + i];
        if (visible > 0) use(tile.row_begin + i, tile.block, visible, of_row);
      }
    });
  }

 private:
  template <class Use>
  void run_row(const Sequence& sequence, std::int64_t block_size, std::int64_t list, std::int64_t row, Use&& use) {
    const std::int64_t past = std::max<std::int64_t>(0, sequence.position(row)) / block_size;
    // to = (+=) the products of one head with the blocks [block, block + count).
    const auto multiply_row = [&](std::int64_t h, std::int64_t block, std::int64_t count, float* to, bool accumulate) {
      const std::int64_t head = list * heads_of_list_ + h;
      const std::int64_t kv_head = head * representatives_.heads() / q_.shape[1];
      kernels_.pack_lanes(pair_source(representatives_(sequence, block, count, kv_head)), lanes_.data());
      kernels_.copy_rows(pair_source(rows_of(q_, row, head, 1)), blocks_.data(), row_);
      kernels_.multiply({.m = 1,
                         .n = count,
                         .pairs = pairs_of(dim_),
                         .a = blocks_.data(),
                         .a_row = row_,
                         .b = lanes_.data(),
                         .c = to,
                         .c_row = kPairRows,
                         .accumulate = accumulate});
    };
    if (fold_.needs_totals()) {
      fold_.begin();
      for (std::int64_t block = 0; block < past; block += kPairRows) {
        const std::int64_t count = std::min(kPairRows, past - block);
        for (std::int64_t h = 0; h < heads_of_list_; ++h) {
          multiply_row(h, block, count, products_.data(), false);
          fold_.measure(h, 0, products_.data(), 1, count);
        }
      }
    }
    for (std::int64_t block = 0; block < past; block += kPairRows) {
      const std::int64_t count = std::min(kPairRows, past - block);
      for (std::int64_t h = 0; h < heads_of_list_; ++h) {
        if (fold_.is_plain_sum()) {
          multiply_row(h, block, count, scores_.data(), h > 0);
          continue;
        }
        multiply_row(h, block, count, products_.data(), false);
        fold_.fold(h, 0, products_.data(), scores_.data(), 1, count);
      }
      use(row, block, count, scores_.data());
    }
  }

  void load_blocks(const Sequence& sequence, std::int64_t first, std::int64_t count, std::int64_t list) {
    for (std::int64_t h = 0; h < heads_of_list_; ++h) {
      const std::int64_t kv_head = (list * heads_of_list_ + h) * representatives_.heads() / q_.shape[1];
      kernels_.copy_rows(pair_source(representatives_(sequence, first, count, kv_head)),
                         blocks_.data() + h * tile_ * row_, row_);
    }
  }

  /// past[i] of the rows first + i, without a division a row.
  static void count_past(const Sequence& sequence, std::int64_t block_size, std::int64_t first, std::int64_t lanes,
                         std::int32_t* past) {
    const std::int64_t position = std::max<std::int64_t>(0, sequence.position(first));
    std::int64_t blocks = position / block_size, left = block_size - position % block_size;
    for (std::int64_t i = 0; i < lanes; ++i, --left) {
      if (left == 0) {
        ++blocks;
        left = block_size;
      }
      past[i] = static_cast<std::int32_t>(blocks);
    }
  }

  void load_rows(std::int64_t first, std::int64_t lanes, std::int64_t list) {
    for (std::int64_t h = 0; h < heads_of_list_; ++h) {
      kernels_.pack_lanes(pair_source(rows_of(q_, first, list * heads_of_list_ + h, lanes)),
                          lanes_.data() + h * row_ * kPairRows);
    }
  }

  /// to = (+=) the products of head h of the list.
  void multiply(std::int64_t h, const GateTile& tile, float* to, bool accumulate) const {
    kernels_.multiply({.m = tile.count,
                       .n = tile.lanes,
                       .pairs = pairs_of(dim_),
                       .a = blocks_.data() + h * tile_ * row_,
                       .a_row = row_,
                       .b = lanes_.data() + h * row_ * kPairRows,
                       .c = to,
                       .c_row = kPairRows,
                       .accumulate = accumulate});
  }

  const ConstTensorView& q_;
  const BlockRows& representatives_;
  std::int64_t dim_, row_, heads_of_list_, tile_;
  const PairKernels& kernels_;
  ReadyForProducts ready_;
  Scratch<Pair> blocks_, lanes_;
  Scratch<float> scores_;
  HeadFold fold_;
  Scratch<float> products_;
};

}  // namespace moba::cpu
