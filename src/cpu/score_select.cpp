// select: the best past blocks of each row while it streams over the representatives. Scores live in one tile only.
// Forced blocks are written beside the best of the rest, and are never offered.
#include <algorithm>

#include "cpu/gate.h"
#include "cpu/gate_pairs.h"
#include "cpu/verbs.h"
#include "past_blocks.h"

namespace moba::cpu {
namespace {

struct Run {
  std::int64_t sequence, row_begin, rows;
};

/// The lists of one selection, as rows of `blocks`.
struct Lists {
  const Selection& selection;
  std::int32_t* operator()(std::int64_t row, std::int64_t list) const {
    return selection.blocks.as<std::int32_t>() + row * selection.blocks.stride[0] + list * selection.blocks.stride[1];
  }
};

PastBlocks past_of(const SelectArgs& args, const Sequence& sequence, std::int64_t row) {
  return {args.rule, std::max<std::int64_t>(0, sequence.position(row)) / args.selection.block_size};
}

/// A heap for each row; any budget, any gate.
template <class AnyGate>
class HeapChooser {
 public:
  static std::int64_t bytes(const SelectArgs& args, std::int64_t heads_of_list, std::int64_t most) {
    return AnyGate::bytes(args.q.shape[2], most, heads_of_list, args.rule) +
           BlockRows::bytes(args.representatives, args.page_table, kBlockTile) +
           most * (free_slots(args.rule, args.selection.budget()) * static_cast<std::int64_t>(sizeof(Candidate)) +
                   static_cast<std::int64_t>(sizeof(std::int64_t)));
  }
  HeapChooser(Context& context, const SelectArgs& args, std::int64_t heads_of_list, std::int64_t most)
      : args_(args),
        slots_(free_slots(args.rule, args.selection.budget())),
        representatives_(context, args.representatives, args.page_table, args.selection.block_size, kBlockTile),
        gate_(context, args.q, representatives_, most, heads_of_list, args.rule),
        heaps_(context, most * slots_, "the best blocks of each row"),
        held_(context, most, "the best blocks of each row") {}

  void run(const Sequence& sequence, const Run& run, std::int64_t list) {
    std::fill_n(held_.data(), run.rows, std::int64_t{0});
    if (slots_ > 0) {
      gate_.run(sequence, args_.selection.block_size, list, run.row_begin, run.rows,
                [&](std::int64_t row, std::int64_t block, std::int64_t blocks, const float* scores) {
                  const PastBlocks past = past_of(args_, sequence, row);
                  const std::int64_t first = std::max(block, past.sinks);
                  const std::int64_t count = std::min(block + blocks, past.end) - first;
                  const std::int64_t r = row - run.row_begin;
                  if (count <= 0) return;
                  held_[r] = kernels().keep_best(scores + (first - block), count, static_cast<std::int32_t>(first),
                                                 heaps_.data() + r * slots_, held_[r], slots_);
                });
    }
    for (std::int64_t r = 0; r < run.rows; ++r) {
      const PastBlocks past = past_of(args_, sequence, run.row_begin + r);
      const Candidate* heap = heaps_.data() + r * slots_;
      std::int32_t* to = Lists{args_.selection}(run.row_begin + r, list);
      for (std::int64_t slot = 0; slot < held_[r]; ++slot) to[past.sinks + slot] = heap[slot].block;
      past.finish_list(to, held_[r], args_.selection.budget());
    }
  }

 private:
  const SelectArgs& args_;
  std::int64_t slots_;
  BlockRows representatives_;
  AnyGate gate_;
  Scratch<Candidate> heaps_;
  Scratch<std::int64_t> held_;
};

/// Sorted lanes of 64 rows; from 1 to kMostKept free slots.
class LaneChooser {
 public:
  static std::int64_t bytes(const SelectArgs& args, std::int64_t heads_of_list, std::int64_t most) {
    return PairGate::bytes(args.q.shape[2], most, heads_of_list, args.rule) +
           BlockRows::bytes(args.representatives, args.page_table, kBlockTile) +
           8 * (most + kPairRows) * kept_slots(free_slots(args.rule, args.selection.budget()));
  }
  LaneChooser(Context& context, const SelectArgs& args, std::int64_t heads_of_list, std::int64_t most)
      : args_(args),
        free_(free_slots(args.rule, args.selection.budget())),
        slots_(kept_slots(free_)),
        kernels_(*pair_kernels()),
        representatives_(context, args.representatives, args.page_table, args.selection.block_size, kBlockTile),
        gate_(context, args.q, representatives_, most, heads_of_list, args.rule),
        scores_(context, (most + kPairRows) * slots_, "the best scores of each row"),
        blocks_(context, (most + kPairRows) * slots_, "the best blocks of each row") {}

  void run(const Sequence& sequence, const Run& run, std::int64_t list) {
    const std::int64_t size = (run.rows + kPairRows - 1) / kPairRows * kPairRows * slots_;
    std::fill_n(scores_.data(), size, kNegativeInfinity);
    std::fill_n(blocks_.data(), size, -1);
    gate_.run_tiles(sequence, args_.selection.block_size, list, run.row_begin, run.rows,
                    [&](const GateTile& tile) { offer(tile, (tile.row_begin - run.row_begin) * slots_); });
    // Without force nothing stands beside the chosen ones, however many are past: no division a row.
    const bool forces = args_.rule.force_previous || args_.rule.sink_blocks > 0;
    for (std::int64_t r = 0; r < run.rows; ++r) {
      const PastBlocks past = forces ? past_of(args_, sequence, run.row_begin + r) : PastBlocks(args_.rule, 0);
      const std::int32_t* kept = blocks_.data() + r / kPairRows * kPairRows * slots_ + r % kPairRows;
      std::int32_t* to = Lists{args_.selection}(run.row_begin + r, list);
      std::int64_t held = 0;
      for (; held < free_ && kept[held * kPairRows] >= 0; ++held) to[past.sinks + held] = kept[held * kPairRows];
      past.finish_list(to, held, args_.selection.budget());
    }
  }

 private:
  void offer(const GateTile& tile, std::int64_t at) {
    const std::int64_t first = std::max(tile.block, args_.rule.sink_blocks), skipped = first - tile.block;
    if (skipped >= tile.count) return;
    std::int32_t end[kPairRows];
    const std::int32_t* limit = tile.past;
    if (args_.rule.force_previous) {
      for (std::int64_t i = 0; i < kPairRows; ++i) end[i] = tile.past[i] - 1;
      limit = end;
    }
    kernels_.keep_best(tile.scores + skipped * kPairRows, tile.count - skipped, static_cast<std::int32_t>(first), limit,
                       tile.lanes, slots_, scores_.data() + at, blocks_.data() + at);
  }

  const SelectArgs& args_;
  std::int64_t free_, slots_;
  const PairKernels& kernels_;
  BlockRows representatives_;
  PairGate gate_;
  Scratch<float> scores_;
  Scratch<std::int32_t> blocks_;
};

template <class Chooser>
void choose(Context& context, const SelectArgs& args, const Sequences& sequences) {
  const std::int64_t lists = args.selection.selection_heads(), heads_of_list = args.q.shape[1] / lists;
  const std::int64_t most = rows_that_fit(context, std::min(kGateRows, args.q.shape[0] + 1), 0, "select",
                                          [&](std::int64_t rows) { return Chooser::bytes(args, heads_of_list, rows); });
  std::int64_t count = 0;
  for_each_row_run(sequences, most, [&](const Sequence&, std::int64_t, std::int64_t) { ++count; });
  Scratch<Run> runs(context, count, "tasks");
  count = 0;
  for_each_row_run(sequences, most, [&](const Sequence& sequence, std::int64_t first, std::int64_t length) {
    runs[count++] = {sequence.index, first, length};
  });
  const auto work = [&](std::int64_t begin, std::int64_t end) {
    Chooser chooser(context, args, heads_of_list, most);
    for (std::int64_t task = begin; task < end; ++task) {
      const Run& run = runs[balanced(task % count, count)];
      chooser.run(sequences[run.sequence], run, task / count);
    }
  };
  // Waking threads takes as long as this many products, as one row of a decoder needs.
  constexpr std::int64_t kWorthWaking = std::int64_t{1} << 18;
  if (args.q.shape[0] * args.q.shape[1] * args.q.shape[2] * most_past_blocks(args) <= kWorthWaking) {
    work(0, count * lists);
  } else {
    context.parallel_for(count * lists, 1, work);
  }
}

}  // namespace

void select(Context& context, const SelectArgs& args) {
  const Selection& selection = args.selection;
  const std::int64_t rows = args.q.shape[0], budget = selection.budget();
  const Sequences sequences = sequences_of(context, args);
  for_each_keyless_run(sequences, rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t list = 0; list < selection.selection_heads(); ++list) {
        std::fill_n(Lists{selection}(row, list), budget, -1);
      }
    }
  });
  const std::int64_t free = free_slots(args.rule, budget);
  if (!PairGate::serves(args.q, args.representatives)) {
    choose<HeapChooser<Gate>>(context, args, sequences);
  } else if (free >= 1 && free <= kMostKept && rows > PairGate::kFewRowsOfGate * sequences.count()) {
    choose<LaneChooser>(context, args, sequences);
  } else {
    choose<HeapChooser<PairGate>>(context, args, sequences);
  }
}

}  // namespace moba::cpu
