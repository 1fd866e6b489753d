#include "portable/choice.h"

#include <vector>

#include "portable/numbers.h"

namespace moba::torch_ops::portable {
namespace {

// Candidates to a group: a wide row is cut down to the groups that can hold a choice before it is sorted.
constexpr std::int64_t kGroup = 8;

std::pair<at::Tensor, at::Tensor> best_by_sort(const at::Tensor& scores, std::int64_t count) {
  auto [value, index] = scores.sort(/*stable=*/true, /*dim=*/-1, /*descending=*/true);
  return {index.narrow(-1, 0, count), value.narrow(-1, 0, count) > -kInfinity};
}

}  // namespace

at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() == at::kFloat) return at::bmm(a, b);
  if (a.is_cuda()) return at::bmm(a, b, at::kFloat);
  return at::bmm(a.to(at::kFloat), b.to(at::kFloat));
}

void forget_nan(at::Tensor& scores) {
  scores.nan_to_num_(/*nan=*/-kInfinity, /*posinf=*/kInfinity, /*neginf=*/-kInfinity);
}

std::int64_t candidate_step(std::int64_t past) {
  std::int64_t step = kGroup;
  while (past > step * kSortWidth) step *= kGroup;
  return step;
}

// One of the `count` best of a row lies in a group whose best is one of the `count` best of the groups: else
// each of these would hold a better one.
std::pair<at::Tensor, at::Tensor> best(const at::Tensor& scores, std::int64_t count) {
  const std::int64_t width = scores.size(-1);
  if (width <= kSortWidth || width <= count * kGroup) return best_by_sort(scores, count);
  const at::Tensor grouped = scores.unflatten(-1, {width / kGroup, kGroup});
  // Groups in their order, so that a stable sort still prefers the lower index.
  const at::Tensor group = std::get<0>(best(grouped.amax(-1), count).first.sort(-1)).unsqueeze(-1);
  std::vector<std::int64_t> shape = group.sizes().vec();
  shape.back() = kGroup;
  auto [place, chosen] = best_by_sort(grouped.gather(-2, group.expand(shape)).flatten(-2), count);
  const at::Tensor member = place.bitwise_and(kGroup - 1);
  return {group.squeeze(-1).gather(-1, at::floor_divide(place, kGroup)) * kGroup + member, chosen};
}

}  // namespace moba::torch_ops::portable
