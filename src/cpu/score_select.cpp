// select: the best past blocks of each row while it streams over the representatives. Scores live in one tile only.
// Forced blocks are written beside the best of the rest, and are never offered.
#include <algorithm>

#include "cpu/gate.h"
#include "cpu/lane_chooser.h"
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
    const std::int64_t past = most_past_blocks(args);
    return AnyGate::bytes(args.q.shape[2], most, past, heads_of_list, args.rule) +
           BlockRows::bytes(args.representatives, args.page_table, AnyGate::blocks_of_tile(past)) +
           most * (free_slots(args.rule, args.selection.budget()) * static_cast<std::int64_t>(sizeof(Candidate)) +
                   static_cast<std::int64_t>(sizeof(std::int64_t)));
  }
  HeapChooser(Context& context, const SelectArgs& args, std::int64_t heads_of_list, std::int64_t most)
      : args_(args),
        slots_(free_slots(args.rule, args.selection.budget())),
        representatives_(context, args.representatives, args.page_table, args.selection.block_size,
                         AnyGate::blocks_of_tile(most_past_blocks(args))),
        gate_(context, args.q, representatives_, most, most_past_blocks(args), heads_of_list, args.rule),
        heaps_(context, most * slots_, "the best blocks of each row"),
        held_(context, most, "the best blocks of each row") {}

  void run(const Sequence& sequence, std::int64_t row_begin, std::int64_t rows, std::int64_t list) {
    std::fill_n(held_.data(), rows, std::int64_t{0});
    if (slots_ > 0) {
      gate_.run(sequence, args_.selection.block_size, list, row_begin, rows,
                [&](std::int64_t row, std::int64_t block, std::int64_t blocks, const float* scores) {
                  const PastBlocks past = past_of(args_, sequence, row);
                  const std::int64_t first = std::max(block, past.sinks);
                  const std::int64_t count = std::min(block + blocks, past.end) - first;
                  const std::int64_t r = row - row_begin;
                  if (count <= 0) return;
                  held_[r] = kernels().keep_best(scores + (first - block), count, static_cast<std::int32_t>(first),
                                                 heaps_.data() + r * slots_, held_[r], slots_);
                });
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      const PastBlocks past = past_of(args_, sequence, row_begin + r);
      const Candidate* heap = heaps_.data() + r * slots_;
      std::int32_t* to = Lists{args_.selection}(row_begin + r, list);
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

/// Rows of one head lie a token apart, where no prefetcher of the processor finds them; the heads of a row lie
/// together.
void ask_for_rows(const ConstTensorView& q, std::int64_t first, std::int64_t count) {
  const std::int64_t size = size_of(q.dtype);
  for (std::int64_t row = first; row < first + count; ++row) {
    for (std::int64_t head = 0; head < q.shape[1]; ++head) {
      const char* at = static_cast<const char*>(q.data) + size * (row * q.stride[0] + head * q.stride[1]);
      for (std::int64_t byte = 0; byte < size * q.shape[2]; byte += 64) __builtin_prefetch(at + byte, 0, 2);
    }
  }
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
      const Run& run = runs[balanced(task / lists, count)];
      if (task == begin || task % lists == 0) ask_for_rows(args.q, run.row_begin, run.rows);
      chooser.run(sequences[run.sequence], run.row_begin, run.rows, task % lists);
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
