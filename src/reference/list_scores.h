// The scores of a row's past blocks for one list, in double precision.
#pragma once

#include <cstdint>

#include "moba/backend.h"
#include "token_rows.h"

namespace moba::reference {

/// What one thread needs to score rows of `args`.
class ListScores {
 public:
  ListScores(Context& context, const SelectArgs& args);
  static std::int64_t bytes(const SelectArgs& args) {
    return 2 * most_past_blocks(args) * static_cast<std::int64_t>(sizeof(double));
  }

  /// scores[0, past) of a packed row: by the heads of list `list`, as SelectArgs::rule says. NaN and -inf mean: not to
  /// be chosen. The result holds until the next call.
  const double* of(const Sequence& sequence, std::int64_t row, std::int64_t list, std::int64_t past);

 private:
  void score_head(const Sequence& sequence, std::int64_t row, std::int64_t head, std::int64_t past);
  void add_probabilities(std::int64_t past);

  Context& context_;
  const SelectArgs& args_;
  Scratch<double> logits_, scores_;
};

/// The score of each listed block: scores float32 or float64 [Tq, selection heads, budget]; NaN in free places.
void score_lists(Context& context, const SelectArgs& args, const TensorView& scores);

}  // namespace moba::reference
