// The varlen seam on a CPU, one segment at a time in float32: slow, obvious, and used by tests only.
#include <cmath>
#include <vector>

#include "portable/numbers.h"
#include "portable/varlen.h"

namespace moba::torch_ops::portable {
namespace {

struct Segment {
  std::int64_t q_begin, q_rows, k_begin, k_rows;
};

std::vector<Segment> read_segments(const Segments& segments) {
  const at::Tensor cu_q = segments.cu_q.contiguous(), cu_k = segments.cu_k.contiguous();
  const int* q = cu_q.const_data_ptr<int>();
  const int* k = cu_k.const_data_ptr<int>();
  std::vector<Segment> list;
  for (std::int64_t i = 0; i + 1 < cu_q.numel(); ++i) {
    if (q[i + 1] > q[i]) list.push_back({q[i], q[i + 1] - q[i], k[i], k[i + 1] - k[i]});
  }
  return list;
}

// Rows of query head h beside the keys of head h / group: [rows, H, X] -> [H, rows, X].
at::Tensor heads_first(const at::Tensor& x, std::int64_t begin, std::int64_t rows, std::int64_t heads) {
  const at::Tensor part = x.narrow(0, begin, rows).transpose(0, 1).to(at::kFloat);
  return part.repeat_interleave(heads / part.size(0), 0);
}

// [H, rows, keys], -inf where the row does not see the key.
at::Tensor masked_scores(const at::Tensor& q, const at::Tensor& k, const Segments& segments, double softmax_scale) {
  at::Tensor scores = at::bmm(q, k.transpose(1, 2)) * softmax_scale;
  if (!segments.causal) return scores;
  const at::Tensor last = at::arange(q.size(1)).unsqueeze(1) + (k.size(1) - q.size(1));
  const at::Tensor key = at::arange(k.size(1)).unsqueeze(0);
  at::Tensor hidden = key > last;
  if (segments.window > 0) hidden = hidden.logical_or(key <= last - segments.window);
  return scores.masked_fill(hidden, -kInfinity);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> varlen_forward_plain(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                        const Segments& segments, double softmax_scale) {
  const std::int64_t heads = q.size(1);
  // What the contract leaves unspecified is NaN, so that a caller who reads it is found out.
  at::Tensor out = at::full({q.size(0), heads, v.size(2)}, std::nan(""), q.options());
  at::Tensor lse = at::full({heads, q.size(0)}, std::nan(""), q.options().dtype(at::kFloat));
  for (const Segment& s : read_segments(segments)) {
    const at::Tensor scores = masked_scores(heads_first(q, s.q_begin, s.q_rows, heads),
                                            heads_first(k, s.k_begin, s.k_rows, heads), segments, softmax_scale);
    const at::Tensor row_lse = at::logsumexp(scores, {-1});
    const at::Tensor p = at::exp(scores - row_lse.masked_fill(row_lse == -kInfinity, 0.0).unsqueeze(-1));
    const at::Tensor part = at::bmm(p, heads_first(v, s.k_begin, s.k_rows, heads));
    out.narrow(0, s.q_begin, s.q_rows).copy_(part.transpose(0, 1));
    lse.narrow(1, s.q_begin, s.q_rows).copy_(row_lse);
  }
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> varlen_backward_plain(const at::Tensor& dout, const at::Tensor& q,
                                                                     const at::Tensor& k, const at::Tensor& v,
                                                                     const at::Tensor& out, const at::Tensor& lse,
                                                                     const Segments& segments, double softmax_scale) {
  const std::int64_t heads = q.size(1), kv_heads = k.size(1), group = heads / kv_heads;
  at::Tensor dq = at::full_like(q, std::nan(""), q.options(), at::MemoryFormat::Contiguous);
  at::Tensor dk = at::zeros(k.sizes(), k.options().dtype(at::kFloat));
  at::Tensor dv = at::zeros(v.sizes(), v.options().dtype(at::kFloat));
  const auto add_to_keys = [&](at::Tensor& target, const Segment& s, const at::Tensor& gradient) {
    const at::Tensor summed = gradient.view({kv_heads, group, s.k_rows, gradient.size(2)}).sum(1);
    target.narrow(0, s.k_begin, s.k_rows).add_(summed.transpose(0, 1));
  };
  for (const Segment& s : read_segments(segments)) {
    const at::Tensor qs = heads_first(q, s.q_begin, s.q_rows, heads), ks = heads_first(k, s.k_begin, s.k_rows, heads);
    const at::Tensor vs = heads_first(v, s.k_begin, s.k_rows, heads);
    const at::Tensor ds_out = heads_first(dout, s.q_begin, s.q_rows, heads);
    const at::Tensor outs = heads_first(out, s.q_begin, s.q_rows, heads);
    const at::Tensor row_lse = lse.narrow(1, s.q_begin, s.q_rows).unsqueeze(-1);
    const at::Tensor scores = masked_scores(qs, ks, segments, softmax_scale);
    const at::Tensor p = at::exp(scores - row_lse.masked_fill(row_lse == -kInfinity, kInfinity));
    const at::Tensor delta = (ds_out * outs).sum(-1, true);
    const at::Tensor ds = p * (at::bmm(ds_out, vs.transpose(1, 2)) - delta) * softmax_scale;
    dq.narrow(0, s.q_begin, s.q_rows).copy_(at::bmm(ds, ks).transpose(0, 1));
    add_to_keys(dk, s, at::bmm(ds.transpose(1, 2), qs));
    add_to_keys(dv, s, at::bmm(p.transpose(1, 2), ds_out));
  }
  return {dq, dk.to(k.scalar_type()), dv.to(v.scalar_type())};
}

}  // namespace moba::torch_ops::portable
