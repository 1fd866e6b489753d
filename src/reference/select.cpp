// select: the best past blocks of each row, by score, ties to the lower index.
#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/rows.h"
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
  const std::int64_t rows = args.q.shape[0], heads = args.q.shape[1], dim = args.q.shape[2];
  const std::int64_t kv_heads = args.representatives.shape[1];
  const Selection& selection = args.selection;
  const std::int64_t selection_heads = selection.selection_heads(), budget = selection.budget();
  const std::int64_t group = heads / selection_heads;  // query heads that share a list
  const std::int64_t block_size = selection.block_size;
  const std::int64_t representative_rows = args.representatives.shape[0];
  const bool in_pages = args.page_table.present();
  const std::int64_t most_blocks =
      in_pages ? args.page_table.pages.shape[1] * args.page_table.page_size / block_size : representative_rows;
  require_workspace(
      context,
      context.num_threads() * most_blocks * static_cast<std::int64_t>(sizeof(Candidate)) + Sequences::bytes(args.batch),
      "scores of one row for each thread");
  const Sequences sequences =
      sequences_of(context, args.batch, args.page_table, rows,
                   in_pages ? representative_rows * args.page_table.page_size
                            : most_keys(representative_rows, args.batch.sequences(), block_size));

  dispatch("q", args.q.dtype, FloatTypes{}, [&]<class T>() {
    context.parallel_for(rows, 16, [&](std::int64_t row_begin, std::int64_t row_end) {
      Scratch<Candidate> candidates(context, most_blocks, "scores of one row");
      double query[kMaxHeadDim];
      for (std::int64_t row = row_begin; row < row_end; ++row) {
        const std::int64_t s = sequences.of_row(row);
        const std::int64_t position = s < 0 ? -1 : sequences[s].position(row);
        const std::int64_t past = position < 0 ? 0 : position / block_size;
        const TokenRows place(context, args.page_table, s < 0 ? Sequence{} : sequences[s], representative_rows);
        for (std::int64_t g = 0; g < selection_heads; ++g) {
          for (std::int64_t block = 0; block < past; ++block) {
            candidates[block] = {0.0, static_cast<std::int32_t>(block)};
          }
          for (std::int64_t head = g * group; head < (g + 1) * group; ++head) {
            load(query, row_of<T>(args.q, row, head), dim);
            for (std::int64_t block = 0; block < past; ++block) {
              const T* representative =
                  row_of<T>(args.representatives, place.block_row(block, block_size), head * kv_heads / heads);
              candidates[block].score += dot(query, representative, dim);
            }
          }
          Candidate* end = std::remove_if(candidates.data(), candidates.data() + past, [](const Candidate& c) {
            return std::isnan(c.score) || c.score == -std::numeric_limits<double>::infinity();
          });
          const std::int64_t chosen = std::min<std::int64_t>(budget, end - candidates.data());
          std::partial_sort(candidates.data(), candidates.data() + chosen, end, better);
          std::sort(candidates.data(), candidates.data() + chosen,
                    [](const Candidate& a, const Candidate& b) { return a.block < b.block; });
          const TensorView& blocks = selection.blocks;
          std::int32_t* list = blocks.as<std::int32_t>() + row * blocks.stride[0] + g * blocks.stride[1];
          for (std::int64_t slot = 0; slot < budget; ++slot) list[slot] = slot < chosen ? candidates[slot].block : -1;
        }
      }
    });
  });
}

}  // namespace moba::reference
