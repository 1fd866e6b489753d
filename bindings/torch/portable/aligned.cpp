#include "portable/aligned.h"

#include <algorithm>
#include <vector>

#include "portable/numbers.h"

namespace moba::torch_ops::portable {
namespace {

at::Tensor lengths(const at::Tensor& cu) {
  return cu.slice(0, 1) - cu.slice(0, 0, -1);
}

// [a0, b0, a1, b1, ..., last]
at::Tensor interleave(const at::Tensor& a, const at::Tensor& b, const at::Tensor& last) {
  return at::cat({at::stack({a, b}, 1).flatten(), last.view({1})});
}

}  // namespace

at::Tensor segment_of(const at::Tensor& cu, std::int64_t rows) {
  const at::Tensor row = at::arange(rows, cu.options());
  return at::searchsorted(cu.slice(0, 1), row, /*out_int32=*/false, /*right=*/true).clamp_max_(cu.size(0) - 2);
}

at::Tensor inside(const at::Tensor& cu, std::int64_t rows) {
  const at::Tensor row = at::arange(rows, cu.options());
  return (row >= cu.select(0, 0)).logical_and_(row < cu.select(0, -1));
}

Segments without_blind_rows(const Segments& segments) {
  if (!segments.causal) return segments;
  Segments result = segments;
  const at::Tensor q_begin = segments.cu_q.slice(0, 0, -1), k_begin = segments.cu_k.slice(0, 0, -1);
  const at::Tensor blind = (lengths(segments.cu_q) - lengths(segments.cu_k)).clamp_min(0);
  result.cu_q = interleave(q_begin, q_begin + blind, segments.cu_q.select(0, -1));
  result.cu_k = interleave(k_begin, k_begin, segments.cu_k.select(0, -1));
  return result;
}

QueriesBesideKeys::QueriesBesideKeys(const Segments& segments, std::int64_t total_q, std::int64_t total_k)
    : segments_(segments), total_q_(total_q) {
  const at::Tensor segment = segment_of(segments.cu_k, total_k);
  const auto end = [&](const at::Tensor& cu) { return cu.index_select(0, segment + 1); };
  // Counted from the ends of the segment, where queries and keys meet.
  const at::Tensor key = at::arange(total_k, segments.cu_k.options());
  const at::Tensor row = end(segments.cu_q) - end(segments.cu_k) + key;
  real_ = (row >= segments.cu_q.index_select(0, segment)).logical_and_(inside(segments.cu_k, total_k));
  row_ = row.clamp(0, std::max<std::int64_t>(total_q - 1, 0)).to(at::kLong);
  segments_.cu_q = segments.cu_k;
  segments_.max_q = segments.max_k;
}

at::Tensor QueriesBesideKeys::gather(const at::Tensor& x) const {
  return x.index_select(0, row_);
}

at::Tensor QueriesBesideKeys::gather_lse(const at::Tensor& lse) const {
  return lse.index_select(1, row_).masked_fill_(real_.logical_not(), -kInfinity);
}

at::Tensor QueriesBesideKeys::scatter(const at::Tensor& x, double missing) const {
  std::vector<std::int64_t> shape = x.sizes().vec();
  shape[0] = total_q_ + 1;  // the last row takes what is passed over
  at::Tensor result = at::full(shape, missing, x.options());
  result.index_copy_(0, row_.masked_fill(real_.logical_not(), total_q_), x);
  return result.narrow(0, 0, total_q_);
}

}  // namespace moba::torch_ops::portable
