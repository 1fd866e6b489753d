#include "portable/spoil.h"

#include <cmath>

#include "portable/numbers.h"

namespace moba::torch_ops::portable {

CleanValues::CleanValues(const at::Tensor& dirty, bool needed) : v(dirty) {
  if (!needed) return;
  const at::Tensor largest = at::linalg_vector_norm(dirty, kInfinity, at::IntArrayRef{-1});  // [Tk, HK]
  const at::Tensor bad = (largest - largest).ne_(0.0);  // NaN where it is not finite
  v = dirty.masked_fill(bad.to(at::kBool).unsqueeze(-1), 0.0);
  // One scan over all heads: along one axis it is much faster, and differences within a head are the same.
  const at::Tensor counted = at::constant_pad_nd(bad.transpose(0, 1).to(at::kLong), {1, 0});
  before = counted.flatten().cumsum(0).view_as(counted);
}

at::Tensor CleanValues::any_between(const at::Tensor& first, const at::Tensor& last) const {
  if (!before.defined()) return at::zeros({first.size(0), v.size(1)}, first.options().dtype(at::kBool));
  return (before.index_select(1, last) > before.index_select(1, first)).transpose(0, 1).contiguous();
}

at::Tensor spoil(const at::Tensor& out, const at::Tensor& spoilt, const at::Tensor& valid) {
  const at::Tensor fill = at::zeros(spoilt.sizes(), out.options()).masked_fill_(spoilt, std::nan(""));
  const at::Tensor keep = spoilt.logical_not().logical_and_(valid.unsqueeze(1));
  const auto beside_out = [](const at::Tensor& x) { return x.unsqueeze(-1).unsqueeze(-1); };  // [Tq, HK, 1, 1]
  const at::Tensor grouped = out.view({out.size(0), spoilt.size(1), -1, out.size(2)});
  // A row that is not valid attends nothing.
  const at::Tensor zero_if_invalid = fill.masked_fill_(valid.logical_not().unsqueeze(1), 0.0);
  return at::where(beside_out(keep), grouped, beside_out(zero_if_invalid)).view(out.sizes());
}

}  // namespace moba::torch_ops::portable
