#include "reference/list_scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/rows.h"

namespace moba::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

ListScores::ListScores(Context& context, const SelectArgs& args)
    : context_(context),
      args_(args),
      logits_(context, most_past_blocks(args), "products of one row"),
      scores_(context, most_past_blocks(args), "scores of one row") {}

const double* ListScores::of(const Sequence& sequence, std::int64_t row, std::int64_t list, std::int64_t past) {
  const std::int64_t group = args_.q.shape[1] / args_.selection.selection_heads();  // query heads that share a list
  // The order by the probabilities of one head is that of its products, and free of underflow.
  const ShareScore way = group == 1 ? ShareScore::kSumLogit : args_.rule.share_score;
  std::fill_n(scores_.data(), past, way == ShareScore::kSumLogit ? 0.0 : -kInfinity);
  for (std::int64_t head = list * group; head < (list + 1) * group; ++head) {
    score_head(sequence, row, head, past);
    switch (way) {
      case ShareScore::kSumLogit:
        for (std::int64_t block = 0; block < past; ++block) scores_[block] += logits_[block];
        break;
      case ShareScore::kMax:
        for (std::int64_t block = 0; block < past; ++block) {
          if (logits_[block] > scores_[block] || std::isnan(logits_[block])) scores_[block] = logits_[block];
        }
        break;
      case ShareScore::kSumProb: add_probabilities(past); break;
    }
  }
  return scores_.data();
}

/// logits[0, past) = q[row, head] · representatives.
void ListScores::score_head(const Sequence& sequence, std::int64_t row, std::int64_t head, std::int64_t past) {
  const std::int64_t dim = args_.q.shape[2], kv_head = head * args_.representatives.shape[1] / args_.q.shape[1];
  double query[kMaxHeadDim];
  dispatch("q", args_.q.dtype, FloatTypes{}, [&]<class T>() { load(query, row_of<const T>(args_.q, row, head), dim); });
  dispatch("representatives", args_.representatives.dtype, FloatTypes{}, [&]<class T>() {
    const TokenRows place(context_, args_.page_table, sequence, args_.representatives.shape[0]);
    for (std::int64_t block = 0; block < past; ++block) {
      logits_[block] =
          dot(query,
              row_of<const T>(args_.representatives, place.block_row(block, args_.selection.block_size), kv_head), dim);
    }
  });
}

/// scores += softmax(softmax_scale * logits). A product that is NaN makes the block's score NaN and has no weight; the
/// score stays -inf where every head's product is.
void ListScores::add_probabilities(std::int64_t past) {
  double maximum = -kInfinity, sum = 0.0;
  for (std::int64_t block = 0; block < past; ++block) {
    if (logits_[block] > maximum) maximum = logits_[block];
  }
  const auto weight = [&](double logit) {
    return logit == maximum ? 1.0 : std::exp((logit - maximum) * args_.rule.softmax_scale);
  };
  for (std::int64_t block = 0; block < past; ++block) {
    if (logits_[block] > -kInfinity) sum += weight(logits_[block]);
  }
  for (std::int64_t block = 0; block < past; ++block) {
    if (std::isnan(logits_[block])) {
      scores_[block] = logits_[block];
    } else if (logits_[block] > -kInfinity) {
      scores_[block] = (scores_[block] == -kInfinity ? 0.0 : scores_[block]) + weight(logits_[block]) / sum;
    }
  }
}

void score_lists(Context& context, const SelectArgs& args, const TensorView& scores) {
  const std::int64_t rows = args.q.shape[0], lists = args.selection.selection_heads();
  const std::int64_t budget = args.selection.budget(), block_size = args.selection.block_size;
  require_workspace(context, context.num_threads() * ListScores::bytes(args) + Sequences::bytes(args.batch),
                    "scores of one row for each thread");
  const Sequences sequences = sequences_of(context, args);
  context.parallel_for(rows, 16, [&](std::int64_t row_begin, std::int64_t row_end) {
    ListScores scorer(context, args);
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      const std::int64_t s = sequences.of_row(row);
      const std::int64_t position = s < 0 ? -1 : sequences[s].position(row);
      const std::int64_t past = position < 0 ? 0 : position / block_size;
      for (std::int64_t list = 0; list < lists; ++list) {
        const std::int64_t at = row * scores.stride[0] + list * scores.stride[1];
        const auto put = [&](std::int64_t slot, double value) {
          if (scores.dtype == DType::kFloat64) {
            scores.as<double>()[at + slot] = value;
          } else {
            scores.as<float>()[at + slot] = static_cast<float>(value);
          }
        };
        for (std::int64_t slot = 0; slot < budget; ++slot) put(slot, std::numeric_limits<double>::quiet_NaN());
        if (past == 0) continue;
        const double* of_row = scorer.of(sequences[s], row, list, past);
        for_each_listed_block(context, args.selection, row, list, past,
                              [&](std::int64_t slot, std::int64_t block) { put(slot, of_row[block]); });
      }
    }
  });
}

}  // namespace moba::reference
