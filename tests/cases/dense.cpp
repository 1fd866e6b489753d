#include "cases/dense.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "dtype.h"

namespace moba::cases {
namespace {

/// Attention of every head over a table of scores. Real is the type sums are kept in, Rounded the one probabilities,
/// their gradients and the results are rounded to.
template <class Real, class Rounded>
Results dense(const Problem& problem, const Mask& mask, DType result_dtype, DType lse_dtype) {
  const std::int64_t rows = problem.rows(), keys = problem.keys(), heads = problem.heads();
  const std::int64_t kv_heads = problem.kv_heads(), dim = problem.head_dim(), value_dim = problem.value_dim();
  const Real scale = static_cast<Real>(problem.scale());
  const auto rounded = [](Real x) { return static_cast<Real>(to_double(round_to<Rounded>(static_cast<double>(x)))); };
  const auto load = [](const HostTensor& tensor) {
    const std::vector<double> values = tensor.values();
    return std::vector<Real>(values.begin(), values.end());
  };
  const std::vector<Real> q = load(problem.q), k = load(problem.k), v = load(problem.v), dout = load(problem.dout);
  const std::vector<Real> dlse = load(problem.dlse);

  Results r;
  r.out = HostTensor(result_dtype, {rows, heads, value_dim});
  r.lse = HostTensor(lse_dtype, {heads, rows});
  r.dq = HostTensor(result_dtype, {rows, heads, dim});
  r.dk = HostTensor(result_dtype, {keys, kv_heads, dim});
  r.dv = HostTensor(result_dtype, {keys, kv_heads, value_dim});
  std::vector<Real> dk(static_cast<std::size_t>(keys * kv_heads * dim)),
      dv(static_cast<std::size_t>(keys * kv_heads * value_dim));
  std::vector<Real> p(static_cast<std::size_t>(keys)), out(static_cast<std::size_t>(value_dim)),
      dq(static_cast<std::size_t>(dim));

  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t kv_head = head / (heads / kv_heads);
      const Real* query = q.data() + (row * heads + head) * dim;
      const Real* dout_row = dout.data() + (row * heads + head) * value_dim;
      const auto key_at = [&](std::int64_t key) { return (key * kv_heads + kv_head) * dim; };
      const auto value_at = [&](std::int64_t key) { return (key * kv_heads + kv_head) * value_dim; };
      const auto dot = [](const Real* a, const Real* b, std::int64_t n) {
        Real sum = 0;
        for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
        return sum;
      };

      Real maximum = -std::numeric_limits<Real>::infinity(), sum = 0;
      for (std::int64_t key = 0; key < keys; ++key) {
        if (!mask.sees(row, head, key)) continue;
        p[key] = scale * dot(query, k.data() + key_at(key), dim);
        maximum = std::max(maximum, p[key]);
      }
      std::fill(out.begin(), out.end(), Real{0});
      for (std::int64_t key = 0; key < keys; ++key) {
        if (!mask.sees(row, head, key)) continue;
        p[key] = std::exp(p[key] - maximum);
        sum += p[key];
        const Real weight = rounded(p[key]);
        for (std::int64_t d = 0; d < value_dim; ++d) out[d] += weight * v[value_at(key) + d];
      }
      Real delta = 0;
      for (std::int64_t d = 0; d < value_dim; ++d) {
        out[d] = sum > 0 ? rounded(out[d] / sum) : Real{0};
        r.out.set((row * heads + head) * value_dim + d, static_cast<double>(out[d]));
        delta += out[d] * dout_row[d];
      }
      const Real lse = maximum + std::log(sum);
      r.lse.set(head * rows + row, static_cast<double>(lse));

      std::fill(dq.begin(), dq.end(), Real{0});
      for (std::int64_t key = 0; key < keys && sum > 0; ++key) {
        if (!mask.sees(row, head, key)) continue;
        const Real probability = std::exp(scale * dot(query, k.data() + key_at(key), dim) - lse);
        const Real dp = dot(dout_row, v.data() + value_at(key), value_dim);
        const Real ds = rounded(probability * (dp - delta + dlse[head * rows + row]));
        const Real weight = rounded(probability);
        for (std::int64_t d = 0; d < dim; ++d) {
          dq[d] += ds * k[key_at(key) + d];
          dk[key_at(key) + d] += ds * query[d];
        }
        for (std::int64_t d = 0; d < value_dim; ++d) dv[value_at(key) + d] += weight * dout_row[d];
      }
      for (std::int64_t d = 0; d < dim; ++d) {
        r.dq.set((row * heads + head) * dim + d, static_cast<double>(scale * dq[d]));
      }
    }
  }
  for (std::int64_t i = 0; i < r.dk.numel(); ++i) r.dk.set(i, static_cast<double>(scale * dk[i]));
  for (std::int64_t i = 0; i < r.dv.numel(); ++i) r.dv.set(i, static_cast<double>(dv[i]));
  return r;
}

}  // namespace

Mask::Mask(const Problem& problem, const Selection& selection)
    : heads_(problem.heads()),
      keys_(problem.keys()),
      table_(static_cast<std::size_t>(problem.rows() * problem.heads() * problem.keys())) {
  const std::vector<double> q_offsets = problem.cu_seqlens_q.values(), k_offsets = problem.cu_seqlens_k.values();
  for (std::size_t s = 0; s + 1 < q_offsets.size(); ++s) {
    const std::int64_t q_begin = static_cast<std::int64_t>(q_offsets[s]),
                       q_end = static_cast<std::int64_t>(q_offsets[s + 1]);
    const std::int64_t k_begin = static_cast<std::int64_t>(k_offsets[s]),
                       k_end = static_cast<std::int64_t>(k_offsets[s + 1]);
    for (std::int64_t row = q_begin; row < q_end; ++row) {
      const std::int64_t position = (k_end - k_begin) - (q_end - row);
      for (std::int64_t head = 0; head < heads_; ++head) {
        for (std::int64_t t = 0; t <= position; ++t) {
          bool seen = true;
          if (selection.kind == SelectionKind::kSpan) {
            seen = t < selection.sink || position - t < selection.window;
          } else if (selection.kind == SelectionKind::kList) {
            const std::int64_t block = t / selection.block_size;
            seen = block == position / selection.block_size;
            const std::int64_t selection_head = head * selection.selection_heads() / heads_;
            const std::int32_t* list = selection.blocks.as<std::int32_t>() + row * selection.blocks.stride[0] +
                                       selection_head * selection.blocks.stride[1];
            for (std::int64_t slot = 0; slot < selection.budget(); ++slot) seen = seen || list[slot] == block;
          }
          table_[static_cast<std::size_t>((row * heads_ + head) * keys_ + k_begin + t)] = seen;
        }
      }
    }
  }
}

Results dense_exact(const Problem& problem, const Mask& mask) {
  return dense<double, double>(problem, mask, DType::kFloat64, DType::kFloat64);
}

Results dense_same_precision(const Problem& problem, const Mask& mask) {
  return dispatch("q", problem.q.dtype(), OneOf<float, BFloat16, Float16>{},
                  [&]<class T>() { return dense<float, T>(problem, mask, problem.q.dtype(), DType::kFloat32); });
}

}  // namespace moba::cases
