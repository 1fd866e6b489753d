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

at::Tensor shared_scores(const at::Tensor& products, const at::Tensor& past, std::int64_t lists, ShareScore way,
                         double softmax_scale) {
  const std::int64_t heads = products.size(1);
  const at::Tensor grouped = products.unflatten(1, {lists, heads / lists});  // [n, lists, group, rows, width]
  if (way == ShareScore::kSumLogit) return grouped.sum(2);
  if (way == ShareScore::kMax) return grouped.amax(2);  // NaN is the greatest
  const at::Tensor hidden = past.logical_not().unsqueeze(2);
  const at::Tensor none = grouped.isnan().logical_or_(hidden).logical_or_(grouped == -kInfinity);
  const at::Tensor logits = grouped.masked_fill(none, -kInfinity);
  const at::Tensor maximum = logits.amax(-1, /*keepdim=*/true);
  // The greatest has weight 1, were it infinite; then the others have none.
  at::Tensor weight = ((logits - maximum) * softmax_scale).exp_();
  weight = weight.masked_fill_(logits == maximum, 1.0).masked_fill_(none, 0.0);
  const at::Tensor total = (weight / weight.sum(-1, /*keepdim=*/true).clamp_min(1.0)).sum(2);
  const at::Tensor no_head = none.all(2);
  return total.masked_fill_(no_head.logical_or_(grouped.isnan().any(2)), -kInfinity);
}

at::Tensor ForcedBlocks::is_no_candidate(const at::Tensor& candidate, const at::Tensor& own) const {
  const at::Tensor late = candidate >= (previous_ ? own - 1 : own);
  return sinks_ > 0 ? late.logical_or(candidate < sinks_) : late;
}

at::Tensor ForcedBlocks::join(const at::Tensor& index, const at::Tensor& own, std::int64_t none) const {
  std::vector<at::Tensor> columns = {index};
  std::vector<std::int64_t> shape = index.sizes().vec();
  if (sinks_ > 0) {
    const at::Tensor sink = at::arange(sinks_, own.options());
    shape.back() = sinks_;
    columns.push_back(at::where(sink < own, sink, none).to(at::kInt).expand(shape));
  }
  if (previous_) {
    shape.back() = 1;
    columns.push_back(at::where(own > sinks_, own - 1, none).to(at::kInt).expand(shape));
  }
  return columns.size() == 1 ? index : at::cat(columns, -1);
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
