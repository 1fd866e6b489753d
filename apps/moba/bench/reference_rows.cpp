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
  explicit Offsets(const ProblemRows& rows)
      : q(torch::tensor({std::int64_t{0}, rows.q.size(0)}, torch::kInt64)),
        k(torch::tensor({std::int64_t{0}, rows.k.size(0)}, torch::kInt64)),
        batch{view_of(q), view_of(k), rows.q.size(0), rows.k.size(0)} {}
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
                         std::int64_t head, std::int64_t first_row) {
  const torch::NoGradGuard no_gradients;
  const std::int64_t keys = rows.begin + rows.count;
  const std::int64_t kv_head = head * k.size(1) / q.size(1);
  const auto part = [](const torch::Tensor& tensor, std::int64_t begin, std::int64_t count, std::int64_t index) {
    return tensor.narrow(0, begin, count).narrow(1, index, 1).detach().cpu().contiguous();
  };
  return {part(q, first_row, rows.count, head), part(k, 0, keys, kv_head), part(v, 0, keys, kv_head)};
}

ReferenceRows reference_forward(const ProblemRows& rows, const AttentionOptions& options) {
  TorchContext context;
  const Offsets offsets(rows);
  const torch::Tensor out = torch::empty({rows.q.size(0), 1, rows.v.size(2)}, rows.q.options());
  const torch::Tensor lse = empty_lse(rows);
  attention(context, reference_backend(), options, view_of(rows.q), view_of(rows.k), view_of(rows.v), offsets.batch,
            {view_of(out), view_of(lse)});
  return {out.select(1, 0), lse.select(0, 0)};
}

ReferenceGradients reference_backward(const ProblemRows& rows, const torch::Tensor& dout,
                                      const AttentionOptions& options) {
  TorchContext context;
  const Backend& backend = reference_backend();
  const Offsets offsets(rows);
  const std::int64_t count = rows.q.size(0);
  Selection selection = plan_selection(options, count, 1, 1);
  torch::Tensor blocks;
  if (selection.kind == SelectionKind::kList) {
    blocks = torch::empty({selection.blocks.shape[0], selection.selection_heads(), selection.budget()}, torch::kInt32);
    selection.blocks = view_of(blocks);
  }
  select(context, backend, options, view_of(rows.q), view_of(rows.k), {}, offsets.batch, selection);

  const torch::Tensor out = torch::empty({count, 1, rows.v.size(2)}, rows.q.options());
  const torch::Tensor lse = empty_lse(rows);
  const torch::Tensor gradient = dout.detach().cpu().unsqueeze(1).contiguous();
  const torch::Tensor dq = torch::empty_like(rows.q), dk = torch::empty_like(rows.k), dv = torch::empty_like(rows.v);
  attend(context, backend,
         {view_of(rows.q),
          view_of(rows.k),
          view_of(rows.v),
          offsets.batch,
          selection,
          options.softmax_scale,
          {view_of(out), view_of(lse)}});
  attend_backward(context, backend,
                  {view_of(rows.q),
                   view_of(rows.k),
                   view_of(rows.v),
                   offsets.batch,
                   selection,
                   options.softmax_scale,
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
