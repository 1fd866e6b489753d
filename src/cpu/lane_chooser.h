// The choice from scores that lie side by side for 64 rows. Values first, blocks after: a row's best scores are ranked
// without branches, the least of them is a bound, and the blocks whose scores reach it are the choice, in ascending
// order. Only where several scores equal the bound may there be too many; the later ones go.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "cpu/gate_pairs.h"
#include "past_blocks.h"

namespace moba::cpu {

/// Chooses for runs of rows of one list; what one thread needs. From 1 to kMostKept free slots.
class LaneChooser {
 public:
  static std::int64_t bytes(const SelectArgs& args, std::int64_t heads_of_list, std::int64_t most) {
    const std::int64_t free = free_slots(args.rule, args.selection.budget());
    return PairGate::bytes(args.q.shape[2], most, most_past_blocks(args), heads_of_list, args.rule) +
           BlockRows::bytes(args.representatives, args.page_table, PairGate::blocks_of_tile(most_past_blocks(args))) +
           8 * kPairRows * words(args) + 4 * (most + kPairRows) * free + 4 * most + 4 * kept(args, most);
  }

  LaneChooser(Context& context, const SelectArgs& args, std::int64_t heads_of_list, std::int64_t most)
      : args_(args),
        free_(free_slots(args.rule, args.selection.budget())),
        words_(words(args)),
        kernels_(*pair_kernels()),
        representatives_(context, args.representatives, args.page_table, args.selection.block_size,
                         PairGate::blocks_of_tile(most_past_blocks(args))),
        gate_(context, args.q, representatives_, most, most_past_blocks(args), heads_of_list, args.rule),
        marks_(context, kPairRows * words_, "the blocks that are marked"),
        best_(context, (most + kPairRows) * free_, "the best scores of each row"),
        held_(context, most, "the lengths of the lists"),
        scores_(context, kept(args, most), "the scores of the lists") {}

  /// Writes the lists `list` of the packed rows [row_begin, row_begin + rows).
  void run(const Sequence& sequence, std::int64_t row_begin, std::int64_t rows, std::int64_t list) {
    std::fill_n(best_.data(), (rows + kPairRows - 1) / kPairRows * kPairRows * free_, kNegativeInfinity);
    std::fill_n(held_.data(), rows, 0);
    gate_.run_tiles(sequence, args_.selection.block_size, list, row_begin, rows,
                    [&](const GateTile& tile) { take(tile, tile.row_begin - row_begin, list); });
    const std::int64_t budget = args_.selection.budget();
    for (std::int64_t r = 0; r < rows; ++r) {
      // Without force nothing stands beside the chosen ones, however many are past: no division a row.
      const std::int64_t past =
          forces() ? std::max<std::int64_t>(0, sequence.position(row_begin + r)) / args_.selection.block_size : 0;
      PastBlocks(args_.rule, past).finish_sorted_list(list_of(row_begin + r, list), held_[r], budget);
    }
  }

 private:
  static std::int64_t words(const SelectArgs& args) { return PairGate::blocks_of_tile(most_past_blocks(args)) / 64; }
  /// Scores of blocks that were taken from one tile are asked for in the next one.
  static std::int64_t kept(const SelectArgs& args, std::int64_t most) {
    const bool one_tile = most_past_blocks(args) <= PairGate::kMostBlocksOfTile;
    return one_tile ? 0 : most * free_slots(args.rule, args.selection.budget());
  }

  bool forces() const { return args_.rule.force_previous || args_.rule.sink_blocks > 0; }
  std::int32_t* list_of(std::int64_t row, std::int64_t list) const {
    return args_.selection.blocks.as<std::int32_t>() + row * args_.selection.blocks.stride[0] +
           list * args_.selection.blocks.stride[1];
  }

  /// Rows of a tile are the rows r, r + 1, … of the run.
  void take(const GateTile& tile, std::int64_t r, std::int64_t list) {
    const std::int64_t first = std::max(tile.block, args_.rule.sink_blocks), count = tile.block + tile.count - first;
    if (count <= 0) return;
    hide(tile);
    const float* scores = tile.scores + (first - tile.block) * kPairRows;
    float* best = best_.data() + r * free_;
    kernels_.rank_scores(scores, count, tile.lanes, free_, best);
    float least[kPairRows];
    for (std::int64_t i = 0; i < kPairRows; ++i) {
      // What is -inf is no score.
      least[i] = std::max(best[(free_ - 1) * kPairRows + i], std::numeric_limits<float>::lowest());
    }
    std::int32_t marked[kPairRows];
    kernels_.mark_scores(scores, count, least, tile.lanes, words_, marks_.data(), marked);
    for (std::int64_t i = 0; i < tile.lanes; ++i) {
      std::int32_t* to = list_of(tile.row_begin + i, list) + args_.rule.sink_blocks;
      float* kept = scores_.data() + (scores_.size() > 0 ? (r + i) * free_ : 0);
      std::uint64_t* marks = marks_.data() + i * words_;
      held_[r + i] = static_cast<std::int32_t>(
          merge({scores + i, first, count, least[i], marked[i], marks}, held_[r + i], to, kept));
    }
  }

  /// What a row does not see, and the block before its own where that is forced, is -inf.
  void hide(const GateTile& tile) const {
    const std::int64_t forced = args_.rule.force_previous ? 1 : 0;
    for (std::int64_t b = std::max<std::int64_t>(0, tile.past[0] - forced - tile.block); b < tile.count; ++b) {
      for (std::int64_t i = 0; i < tile.lanes; ++i) {
        if (tile.block + b >= tile.past[i] - forced) tile.scores[b * kPairRows + i] = kNegativeInfinity;
      }
    }
  }

  /// The blocks [first, first + count) for one row: their scores, 64 floats apart, and the `marked` ones of them that
  /// reach `least`.
  struct Offer {
    const float* scores;
    std::int64_t first, count;
    float least;
    std::int32_t marked;
    std::uint64_t* marks;
  };

  /// A row's list to[0 .. held), with scores where tiles follow each other, takes what is offered and loses what has
  /// fallen below the bound. Returns its new length.
  std::int64_t merge(const Offer& offer, std::int64_t held, std::int32_t* to, float* kept) const {
    std::int64_t coming = offer.marked, stay = 0;
    for (std::int64_t j = 0; j < held; ++j) {
      if (!(kept[j] >= offer.least)) continue;
      to[stay] = to[j];
      kept[stay++] = kept[j];
    }
    if (stay + coming > free_) drop_equals(offer, to, kept, stay, coming);

    std::uint64_t bits = 0;
    std::int64_t word = -1;
    for (std::int64_t j = stay; j < stay + coming; ++j) {
      while (bits == 0) bits = offer.marks[++word];
      to[j] = static_cast<std::int32_t>(offer.first + 64 * word + std::countr_zero(bits));
      bits &= bits - 1;
    }
    if (scores_.size() > 0) {
      for (std::int64_t j = stay; j < stay + coming; ++j) kept[j] = offer.scores[(to[j] - offer.first) * kPairRows];
    }
    return stay + coming;
  }

  /// Of the blocks whose score is the bound itself the last ones, until no more than free_ are left.
  void drop_equals(const Offer& offer, std::int32_t* to, float* kept, std::int64_t& stay, std::int64_t& coming) const {
    for (std::int64_t w = (offer.count + 63) / 64 - 1; w >= 0; --w) {
      for (std::uint64_t rest = offer.marks[w]; rest != 0 && stay + coming > free_;) {
        const int top = 63 - std::countl_zero(rest);
        rest ^= std::uint64_t{1} << top;
        if (offer.scores[(64 * w + top) * kPairRows] > offer.least) continue;
        offer.marks[w] ^= std::uint64_t{1} << top;
        --coming;
      }
    }
    for (std::int64_t j = stay - 1; stay + coming > free_; --j) {
      if (kept[j] > offer.least) continue;
      std::copy(to + j + 1, to + stay, to + j);
      std::copy(kept + j + 1, kept + stay, kept + j);
      --stay;
    }
  }

  const SelectArgs& args_;
  std::int64_t free_, words_;
  const PairKernels& kernels_;
  BlockRows representatives_;
  PairGate gate_;
  Scratch<std::uint64_t> marks_;
  Scratch<float> best_;
  Scratch<std::int32_t> held_;
  Scratch<float> scores_;
};

}  // namespace moba::cpu
