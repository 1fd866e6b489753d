// select: the best past blocks of each row while it streams over the representatives. Scores live in one tile only.
#include <algorithm>

#include "cpu/gate.h"
#include "cpu/verbs.h"

namespace moba::cpu {
namespace {

struct Run {
  std::int64_t sequence, row_begin, rows;
};

}  // namespace

void select(Context& context, const SelectArgs& args) {
  const Selection& selection = args.selection;
  const std::int64_t rows = args.q.shape[0], budget = selection.budget(), lists = selection.selection_heads();
  const std::int64_t heads_of_list = args.q.shape[1] / lists;
  const Sequences sequences(context, args.batch, rows,
                            most_keys(args.representatives.shape[0], args.batch.sequences(), selection.block_size));
  const auto list_of = [&](std::int64_t row, std::int64_t list) {
    return selection.blocks.as<std::int32_t>() + row * selection.blocks.stride[0] + list * selection.blocks.stride[1];
  };
  for_each_keyless_run(sequences, rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t list = 0; list < lists; ++list) std::fill_n(list_of(row, list), budget, -1);
    }
  });

  const auto bytes = [&](std::int64_t most) {
    return Gate::bytes(args.q.shape[2], most, heads_of_list) +
           most * (budget * static_cast<std::int64_t>(sizeof(Candidate)) +
                   static_cast<std::int64_t>(sizeof(std::int64_t)));
  };
  const std::int64_t most = rows_that_fit(context, std::min(kGateRows, rows + 1), 0, "select", bytes);
  std::int64_t count = 0;
  for_each_row_run(sequences, most, [&](const Sequence&, std::int64_t, std::int64_t) { ++count; });
  Scratch<Run> runs(context, count, "tasks");
  count = 0;
  for_each_row_run(sequences, most, [&](const Sequence& sequence, std::int64_t first, std::int64_t length) {
    runs[count++] = {sequence.index, first, length};
  });

  const Kernels& kernel = kernels();
  context.parallel_for(count * lists, 1, [&](std::int64_t begin, std::int64_t end) {
    Gate gate(context, args.q, args.representatives, most, heads_of_list);
    const Scratch<Candidate> heaps(context, most * budget, "the best blocks of each row");
    const Scratch<std::int64_t> held(context, most, "the best blocks of each row");
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t list = task / count;
      const Run run = runs[balanced(task % count, count)];
      std::fill_n(held.data(), run.rows, std::int64_t{0});
      gate.run(sequences[run.sequence], selection.block_size, list, run.row_begin, run.rows,
               [&](std::int64_t row, std::int64_t block, std::int64_t blocks, const float* scores) {
                 const std::int64_t r = row - run.row_begin;
                 held[r] = kernel.keep_best(scores, blocks, static_cast<std::int32_t>(block), heaps.data() + r * budget,
                                            held[r], budget);
               });
      for (std::int64_t r = 0; r < run.rows; ++r) {
        const Candidate* heap = heaps.data() + r * budget;
        std::int32_t* to = list_of(run.row_begin + r, list);
        for (std::int64_t slot = 0; slot < budget; ++slot) to[slot] = slot < held[r] ? heap[slot].block : -1;
        std::sort(to, to + held[r]);
      }
    }
  });
}

}  // namespace moba::cpu
