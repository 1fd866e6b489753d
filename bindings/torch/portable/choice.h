// Gate scores, and the best of them.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <utility>

namespace moba::torch_ops::portable {

/// Up to here ATen sorts a row with one warp.
inline constexpr std::int64_t kSortWidth = 128;

/// a [b, m, n] x b [b, n, l] -> float32 [b, m, l].
at::Tensor product(const at::Tensor& a, const at::Tensor& b);

/// NaN is the worst score: -inf in its place.
void forget_nan(at::Tensor& scores);

/// How many candidates to score for `past` of them: whole groups at every level of `best`. Those beyond are -inf.
std::int64_t candidate_step(std::int64_t past);

/// The `count` best of the last axis by (score, lower index first): int64 [..., count] in any order, and whether each
/// is a choice (its score is not -inf). The last axis is a multiple of candidate_step(its size); it holds no NaN.
std::pair<at::Tensor, at::Tensor> best(const at::Tensor& scores, std::int64_t count);

}  // namespace moba::torch_ops::portable
