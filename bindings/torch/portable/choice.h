// Gate scores, and the best of them.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "moba/options.h"

namespace moba::torch_ops::portable {

/// Up to here ATen sorts a row with one warp.
inline constexpr std::int64_t kSortWidth = 128;

/// a [b, m, n] x b [b, n, l] -> float32 [b, m, l].
at::Tensor product(const at::Tensor& a, const at::Tensor& b);

/// NaN is the worst score: -inf in its place.
void forget_nan(at::Tensor& scores);

/// One score of a list for those of its heads: products [n, heads, rows, width] -> [n, lists, rows, width] by
/// ShareScore; NaN where a head's product is NaN. `past` (bool, broadcast [n, 1, rows, width]) says which candidates
/// count for a softmax; what the others get is of no account.
at::Tensor shared_scores(const at::Tensor& products, const at::Tensor& past, std::int64_t lists, ShareScore way,
                         double softmax_scale);

/// The blocks that `options` force on a row, for sequences of at most `past` past blocks.
class ForcedBlocks {
 public:
  ForcedBlocks(const AttentionOptions& options, std::int64_t past)
      : sinks_(std::min(options.sink_blocks, past)), previous_(options.force_previous) {}

  /// Slots left for candidates. Every row that has any candidate has all the forced blocks.
  std::int64_t free_slots(std::int64_t budget) const {
    return std::max<std::int64_t>(0, budget - sinks_ - (previous_ ? 1 : 0));
  }
  /// bool: candidates [width] that are not of the past of rows with these own blocks [..., 1], or forced.
  at::Tensor is_no_candidate(const at::Tensor& candidate, const at::Tensor& own) const;
  /// Lists int32 [n, lists, rows, count] with the forced blocks behind; `none` where a row has no such block.
  at::Tensor join(const at::Tensor& index, const at::Tensor& own, std::int64_t none) const;

 private:
  std::int64_t sinks_;
  bool previous_;
};

/// How many candidates to score for `past` of them: whole groups at every level of `best`. Those beyond are -inf.
std::int64_t candidate_step(std::int64_t past);

/// The `count` best of the last axis by (score, lower index first): int64 [..., count] in any order, and whether each
/// is a choice (its score is not -inf). The last axis is a multiple of candidate_step(its size); it holds no NaN.
std::pair<at::Tensor, at::Tensor> best(const at::Tensor& scores, std::int64_t count);

}  // namespace moba::torch_ops::portable
