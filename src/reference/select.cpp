// select: the best past blocks of each row, by score, ties to the lower index; forced ones before all.
#include <algorithm>
#include <cmath>
#include <limits>

#include "past_blocks.h"
#include "reference/list_scores.h"
#include "reference/verbs.h"
#include "token_rows.h"

namespace moba::reference {
namespace {

struct Candidate {
  double score;
  std::int32_t block;
};

bool better(const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score > b.score : a.block < b.block;
}

}  // namespace

void select(Context& context, const SelectArgs& args) {
  const std::int64_t rows = args.q.shape[0];
  const Selection& selection = args.selection;
  const std::int64_t budget = selection.budget(), block_size = selection.block_size;
  const std::int64_t most = most_past_blocks(args);
  const std::int64_t candidate_bytes = most * static_cast<std::int64_t>(sizeof(Candidate));
  require_workspace(context,
                    context.num_threads() * (candidate_bytes + ListScores::bytes(args)) + Sequences::bytes(args.batch),
                    "scores of one row for each thread");
  const Sequences sequences = sequences_of(context, args);

  context.parallel_for(rows, 16, [&](std::int64_t row_begin, std::int64_t row_end) {
    Scratch<Candidate> candidates(context, most, "candidates of one row");
    ListScores scorer(context, args);
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      const std::int64_t s = sequences.of_row(row);
      const std::int64_t position = s < 0 ? -1 : sequences[s].position(row);
      const PastBlocks past(args.rule, position < 0 ? 0 : position / block_size);
      for (std::int64_t list = 0; list < selection.selection_heads(); ++list) {
        std::int64_t count = 0;
        if (past.past > 0) {
          const double* scores = scorer.of(sequences[s], row, list, past.past);
          for (std::int64_t block = past.sinks; block < past.end; ++block) {
            if (std::isnan(scores[block]) || scores[block] == -std::numeric_limits<double>::infinity()) continue;
            candidates[count++] = {scores[block], static_cast<std::int32_t>(block)};
          }
        }
        const std::int64_t chosen = std::min(free_slots(args.rule, budget), count);
        std::partial_sort(candidates.data(), candidates.data() + chosen, candidates.data() + count, better);
        const TensorView& blocks = selection.blocks;
        std::int32_t* to = blocks.as<std::int32_t>() + row * blocks.stride[0] + list * blocks.stride[1];
        for (std::int64_t slot = 0; slot < chosen; ++slot) to[past.sinks + slot] = candidates[slot].block;
        past.finish_list(to, chosen, budget);
      }
    }
  });
}

}  // namespace moba::reference
