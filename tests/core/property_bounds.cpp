// How far roundings alone may take the results, element by element. The 2x-error rule compares with the error of a
// dense computation, a random quantity: over one row of sums that cancel (equal keys, whose dq is nothing but rounding)
// that error may happen to be close to nothing. Then the analysis here decides.
#include <algorithm>
#include <cmath>

#include "core/property_case.h"

namespace moba::test {
namespace {

using cases::HostTensor;
using cases::Problem;

/// sum |a_i b_i|, and the plain sum through `plain`.
double absolute_dot(const double* a, const double* b, std::int64_t n, double& plain) {
  double size = 0.0;
  plain = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    plain += a[i] * b[i];
    size += std::fabs(a[i] * b[i]);
  }
  return size;
}

struct Units {
  double narrow, smallest;  // half a unit in the last place, relative; and of the smallest numbers, absolute
};

Units units_of(DType dtype) {
  if (dtype == DType::kBFloat16) return {0x1p-8, 0x1p-134};
  if (dtype == DType::kFloat16) return {0x1p-11, 0x1p-25};
  return {0x1p-24, 0x1p-150};
}

}  // namespace

cases::Results rounding_bounds(const Problem& problem, const cases::Mask& mask, const cases::Results& exact) {
  constexpr double kSum = 0x1p-24;  // every product and sum is a float32
  const Units unit = units_of(problem.q.dtype());
  const std::int64_t rows = problem.rows(), keys = problem.keys(), heads = problem.heads();
  const std::int64_t kv_heads = problem.kv_heads(), dim = problem.head_dim(), value_dim = problem.value_dim();
  const double scale = problem.scale(), n = static_cast<double>(keys + 2);
  const double d_units = static_cast<double>(dim + 2) * kSum, v_units = static_cast<double>(value_dim + 2) * kSum;
  const std::vector<double> q = problem.q.values(), k = problem.k.values(), v = problem.v.values();
  const std::vector<double> dout = problem.dout.values(), dlse = problem.dlse.values(), out = exact.out.values();
  const std::vector<double> lse = exact.lse.values();
  std::vector<double> out_bound(out.size()), lse_bound(lse.size()), dq(q.size()), dk(k.size()), dv(v.size());

  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t at = row * heads + head, kv_head = head / (heads / kv_heads);
      const double row_lse = lse[static_cast<std::size_t>(head * rows + row)];
      if (!std::isfinite(row_lse)) continue;
      double delta = 0.0, worst_score = 0.0;
      const double delta_size =
          absolute_dot(out.data() + at * value_dim, dout.data() + at * value_dim, value_dim, delta);
      for (std::int64_t key = 0; key < keys; ++key) {
        if (!mask.sees(row, head, key)) continue;
        const std::int64_t k_at = (key * kv_heads + kv_head) * dim, v_at = (key * kv_heads + kv_head) * value_dim;
        double score = 0.0, dp = 0.0;
        const double score_error = scale * d_units * absolute_dot(q.data() + at * dim, k.data() + k_at, dim, score);
        const double dp_size = absolute_dot(dout.data() + at * value_dim, v.data() + v_at, value_dim, dp);
        worst_score = std::max(worst_score, score_error);
        const double p = std::exp(scale * score - row_lse);
        // exp(score - lse): what its argument is off by, and the roundings of argument, exp and lse.
        const double p_error = p * (2.0 * score_error + (4.0 + std::fabs(row_lse) + std::fabs(scale * score)) * kSum);
        const double ds = p * (dp - delta + dlse[static_cast<std::size_t>(head * rows + row)]);
        const double inner =
            v_units * dp_size + (unit.narrow + v_units) * delta_size +
            3.0 * kSum *
                (std::fabs(dp) + std::fabs(delta) + std::fabs(dlse[static_cast<std::size_t>(head * rows + row)]));
        const double ds_error =
            (p > 0 ? p_error / p : 0.0) * std::fabs(ds) + p * inner + unit.narrow * std::fabs(ds) + unit.smallest;
        const double ds_term = ds_error + n * kSum * std::fabs(ds);
        for (std::int64_t d = 0; d < dim; ++d) {
          dq[static_cast<std::size_t>(at * dim + d)] +=
              scale * ds_term * std::fabs(k[static_cast<std::size_t>(k_at + d)]);
          dk[static_cast<std::size_t>(k_at + d)] +=
              scale * ds_term * std::fabs(q[static_cast<std::size_t>(at * dim + d)]);
        }
        const double weight_error = p_error + (unit.narrow + n * kSum) * p + unit.smallest;
        for (std::int64_t d = 0; d < value_dim; ++d) {
          out_bound[static_cast<std::size_t>(at * value_dim + d)] +=
              2.0 * weight_error * std::fabs(v[static_cast<std::size_t>(v_at + d)]);
          dv[static_cast<std::size_t>(v_at + d)] +=
              weight_error * std::fabs(dout[static_cast<std::size_t>(at * value_dim + d)]);
        }
      }
      lse_bound[static_cast<std::size_t>(head * rows + row)] =
          worst_score + (n + 4.0 + 2.0 * std::fabs(row_lse)) * kSum;
    }
  }
  const auto filled = [&](const std::vector<double>& bound, const HostTensor& like, bool rounded) {
    const std::vector<double> values = like.values();
    HostTensor tensor = like.to(DType::kFloat64);
    for (std::size_t i = 0; i < values.size(); ++i) {
      tensor.set(static_cast<std::int64_t>(i),
                 bound[i] + (rounded ? unit.narrow * std::fabs(values[i]) + unit.smallest : 0.0));
    }
    return tensor;
  };
  return {filled(out_bound, exact.out, true), filled(lse_bound, exact.lse, false), filled(dq, exact.dq, true),
          filled(dk, exact.dk, true), filled(dv, exact.dv, true)};
}

}  // namespace moba::test
