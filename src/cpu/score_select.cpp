// select: the best past blocks of each row while it streams over the representatives. Scores live in one tile only.
#include <algorithm>

#include "cpu/gate.h"
#include "cpu/gate_pairs.h"
#include "cpu/verbs.h"

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

/// A heap for each row; any budget, any gate.
template <class AnyGate>
class HeapChooser {
 public:
  static std::int64_t bytes(const SelectArgs& args, std::int64_t heads_of_list, std::int64_t most) {
    return AnyGate::bytes(args.q.shape[2], most, heads_of_list) +
           BlockRows::bytes(args.representatives, args.page_table, kBlockTile) +
           most * (args.selection.budget() * static_cast<std::int64_t>(sizeof(Candidate)) +
                   static_cast<std::int64_t>(sizeof(std::int64_t)));
  }
  HeapChooser(Context& context, const SelectArgs& args, std::int64_t heads_of_list, std::int64_t most)
      : args_(args),
        representatives_(context, args.representatives, args.page_table, args.selection.block_size, kBlockTile),
        gate_(context, args.q, representatives_, most, heads_of_list),
        heaps_(context, most * args.selection.budget(), "the best blocks of each row"),
        held_(context, most, "the best blocks of each row") {}

  void run(const Sequence& sequence, const Run& run, std::int64_t list) {
    const std::int64_t budget = args_.selection.budget();
    std::fill_n(held_.data(), run.rows, std::int64_t{0});
    gate_.run(sequence, args_.selection.block_size, list, run.row_begin, run.rows,
              [&](std::int64_t row, std::int64_t block, std::int64_t blocks, const float* scores) {
                const std::int64_t r = row - run.row_begin;
                held_[r] = kernels().keep_best(scores, blocks, static_cast<std::int32_t>(block),
                                               heaps_.data() + r * budget, held_[r], budget);
              });
    for (std::int64_t r = 0; r < run.rows; ++r) {
      const Candidate* heap = heaps_.data() + r * budget;
      std::int32_t* to = Lists{args_.selection}(run.row_begin + r, list);
      for (std::int64_t slot = 0; slot < budget; ++slot) to[slot] = slot < held_[r] ? heap[slot].block : -1;
      std::sort(to, to + held_[r]);
    }
  }

 private:
  const SelectArgs& args_;
  BlockRows representatives_;
  AnyGate gate_;
  Scratch<Candidate> heaps_;
  Scratch<std::int64_t> held_;
};

/// Sorted lanes of 64 rows; budgets from 1 to kMostKept.
class LaneChooser {
 public:
  static std::int64_t bytes(const SelectArgs& args, std::int64_t heads_of_list, std::int64_t most) {
    return PairGate::bytes(args.q.shape[2], most, heads_of_list) +
           BlockRows::bytes(args.representatives, args.page_table, kBlockTile) +
           8 * (most + kPairRows) * kept_slots(args.selection.budget());
  }
  LaneChooser(Context& context, const SelectArgs& args, std::int64_t heads_of_list, std::int64_t most)
      : args_(args),
        kernels_(*pair_kernels()),
        representatives_(context, args.representatives, args.page_table, args.selection.block_size, kBlockTile),
        gate_(context, args.q, representatives_, most, heads_of_list),
        scores_(context, (most + kPairRows) * kept_slots(args.selection.budget()), "the best scores of each row"),
        blocks_(context, (most + kPairRows) * kept_slots(args.selection.budget()), "the best blocks of each row") {}

  void run(const Sequence& sequence, const Run& run, std::int64_t list) {
    const std::int64_t budget = args_.selection.budget();
    const std::int64_t slots = kept_slots(budget);
    const std::int64_t size = (run.rows + kPairRows - 1) / kPairRows * kPairRows * slots;
    std::fill_n(scores_.data(), size, kNegativeInfinity);
    std::fill_n(blocks_.data(), size, -1);
    gate_.run_tiles(sequence, args_.selection.block_size, list, run.row_begin, run.rows, [&](const GateTile& tile) {
      const std::int64_t at = (tile.row_begin - run.row_begin) * slots;
      kernels_.keep_best(tile.scores, tile.count, static_cast<std::int32_t>(tile.block), tile.past, tile.lanes, slots,
                         scores_.data() + at, blocks_.data() + at);
    });
    for (std::int64_t r = 0; r < run.rows; ++r) {
      const std::int32_t* kept = blocks_.data() + r / kPairRows * kPairRows * slots + r % kPairRows;
      std::int32_t* to = Lists{args_.selection}(run.row_begin + r, list);
      std::int64_t held = 0;
      for (; held < budget && kept[held * kPairRows] >= 0; ++held) to[held] = kept[held * kPairRows];
      std::fill_n(to + held, budget - held, -1);
      std::sort(to, to + held);
    }
  }

 private:
  const SelectArgs& args_;
  const PairKernels& kernels_;
  BlockRows representatives_;
  PairGate gate_;
  Scratch<float> scores_;
  Scratch<std::int32_t> blocks_;
};

/// How many past blocks a row has at most.
std::int64_t most_blocks(const SelectArgs& args) {
  if (!args.page_table.present()) return args.representatives.shape[0] - 1;
  const std::int64_t capacity = args.page_table.pages.shape[1] * args.page_table.page_size;
  return std::min(args.batch.max_seqlen_k, capacity) / args.selection.block_size;
}

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
  if (args.q.shape[0] * args.q.shape[1] * args.q.shape[2] * most_blocks(args) <= kWorthWaking) {
    work(0, count * lists);
  } else {
    context.parallel_for(count * lists, 1, work);
  }
}

}  // namespace

void select(Context& context, const SelectArgs& args) {
  const Selection& selection = args.selection;
  const std::int64_t rows = args.q.shape[0], budget = selection.budget();
  const std::int64_t blocks = args.representatives.shape[0];
  const Sequences sequences =
      sequences_of(context, args.batch, args.page_table, rows,
                   args.page_table.present() ? blocks * args.page_table.page_size
                                             : most_keys(blocks, args.batch.sequences(), selection.block_size));
  for_each_keyless_run(sequences, rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t list = 0; list < selection.selection_heads(); ++list) {
        std::fill_n(Lists{selection}(row, list), budget, -1);
      }
    }
  });
  if (!PairGate::serves(args.q)) {
    choose<HeapChooser<Gate>>(context, args, sequences);
  } else if (budget >= 1 && budget <= kMostKept && rows > PairGate::kFewRowsOfGate * sequences.count()) {
    choose<LaneChooser>(context, args, sequences);
  } else {
    choose<HeapChooser<PairGate>>(context, args, sequences);
  }
}

}  // namespace moba::cpu
