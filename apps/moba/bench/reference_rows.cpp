#include "bench/reference_rows.h"

#include <algorithm>
#include <cmath>

#include "bindings/torch/core.h"
#include "moba/pipeline.h"

namespace moba::app {

using torch_ops::TorchContext;
using torch_ops::view_of;

namespace {

/// One sequence: its last rows against all its keys.
struct Offsets {
  torch::Tensor q, k;
  PackedBatch batch;
  Offsets(std::int64_t rows, std::int64_t keys)
      : q(torch::tensor({std::int64_t{0}, rows}, torch::kInt64)),
        k(torch::tensor({std::int64_t{0}, keys}, torch::kInt64)),
        batch{view_of(q), view_of(k), rows, keys} {}
  explicit Offsets(const ProblemRows& rows) : Offsets(rows.q.size(0), rows.k.size(0)) {}
};

torch::Tensor empty_lse(const ProblemRows& rows) {
  return torch::empty({1, rows.q.size(0)}, rows.q.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32);
}

}  // namespace

std::vector<RowRange> sampled_rows(std::int64_t n, bool decode) {
  if (decode) return {{n - 1, 1}};
  constexpr std::int64_t kRows = 16;
  if (n <= 3 * kRows) return {{0, n}};
  return {{0, kRows}, {n / 2 - kRows / 2, kRows}, {n - kRows, kRows}};
}

ProblemRows problem_rows(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const RowRange& rows,
                         std::int64_t head, std::int64_t first_row, const AttentionOptions& options) {
  const torch::NoGradGuard no_gradients;
  const std::int64_t keys = rows.begin + rows.count;
  const std::int64_t kv_head = head * k.size(1) / q.size(1);
  const auto part = [](const torch::Tensor& tensor, std::int64_t begin, std::int64_t count, std::int64_t index,
                       std::int64_t heads) {
    return tensor.narrow(0, begin, count).narrow(1, index, heads).detach().cpu().contiguous();
  };
  ProblemRows result{
      part(q, first_row, rows.count, head, 1), part(k, 0, keys, kv_head, 1), part(v, 0, keys, kv_head, 1), {}, {}};

  const bool shares = options.share != Share::kHead;
  const torch::Tensor gate_q = shares ? part(q, first_row, rows.count, 0, q.size(1)) : result.q;
  const torch::Tensor gate_k = shares ? part(k, 0, keys, 0, k.size(1)) : result.k;
  result.selection = plan_selection(options, rows.count, gate_q.size(1), gate_k.size(1), keys);
  if (result.selection.kind != SelectionKind::kList) return result;
  const std::int64_t lists = result.selection.selection_heads();
  const torch::Tensor blocks = torch::empty({rows.count, lists, result.selection.budget()}, torch::kInt32);
  result.selection.blocks = view_of(blocks);
  TorchContext context;
  const Offsets offsets(result);
  select(context, reference_backend(), options, view_of(gate_q), view_of(gate_k), {}, offsets.batch, result.selection);
  result.blocks = blocks.narrow(1, shares ? head * lists / q.size(1) : 0, 1).contiguous();
  result.selection.blocks = view_of(result.blocks);
  return result;
}

ReferenceRows reference_forward(const ProblemRows& rows, double softmax_scale) {
  TorchContext context;
  const Offsets offsets(rows);
  const torch::Tensor out = torch::empty({rows.q.size(0), 1, rows.v.size(2)}, rows.q.options());
  const torch::Tensor lse = empty_lse(rows);
  attend(context, reference_backend(),
         {view_of(rows.q),
          view_of(rows.k),
          view_of(rows.v),
          offsets.batch,
          rows.selection,
          softmax_scale,
          {view_of(out), view_of(lse)}});
  return {out.select(1, 0), lse.select(0, 0)};
}

ReferenceGradients reference_backward(const ProblemRows& rows, const torch::Tensor& dout, double softmax_scale) {
  TorchContext context;
  const Offsets offsets(rows);
  const ReferenceRows forward = reference_forward(rows, softmax_scale);
  const torch::Tensor out = forward.out.unsqueeze(1), lse = forward.lse.unsqueeze(0);
  const torch::Tensor gradient = dout.detach().cpu().unsqueeze(1).contiguous();
  const torch::Tensor dq = torch::empty_like(rows.q), dk = torch::empty_like(rows.k), dv = torch::empty_like(rows.v);
  attend_backward(context, reference_backend(),
                  {view_of(rows.q),
                   view_of(rows.k),
                   view_of(rows.v),
                   offsets.batch,
                   rows.selection,
                   softmax_scale,
                   view_of(out),
                   view_of(lse),
                   view_of(gradient),
                   {},
                   view_of(dq),
                   view_of(dk),
                   view_of(dv)});
  return {dq.select(1, 0), dk.select(1, 0), dv.select(1, 0)};
}

double relative_error(const torch::Tensor& got, const torch::Tensor& expected) {
  const torch::NoGradGuard no_gradients;
  const torch::Tensor a = got.detach().to(torch::kCPU, torch::kFloat64);
  const torch::Tensor b = expected.to(torch::kFloat64);
  const double scale = b.abs().max().item<double>();
  const double difference = (a - b).abs().max().item<double>();
  return difference == 0 ? 0.0 : difference / scale;
}

}  // namespace moba::app
