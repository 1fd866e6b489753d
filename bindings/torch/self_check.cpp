#include "moba_torch/self_check.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "arguments.h"
#include "core.h"

namespace moba::torch_ops {
namespace {

// Each part of an attention row is rounded to the dtype before the merge, so the two sides differ by a few units in
// the last place of the largest value; float32 adds the rounding of sums over thousands of keys.
double tolerance_of(at::ScalarType dtype) {
  if (dtype == at::kFloat) return 2e-4;
  return dtype == at::kHalf ? 4e-3 : 2e-2;
}

// max |a - b| / max |b|; infinite where only one side is finite.
double relative_error(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0) return 0.0;
  const at::Tensor x = a.to(at::kDouble), y = b.to(at::kDouble);
  const at::Tensor same = x.eq(y).logical_or_(x.isnan().logical_and(y.isnan()));
  const at::Tensor difference = (x - y).abs().masked_fill(same, 0.0);
  const double worst = difference.nan_to_num(std::numeric_limits<double>::infinity()).max().item<double>();
  const at::Tensor finite = y.masked_fill(y.isfinite().logical_not(), 0.0);
  return worst == 0.0 ? 0.0 : worst / finite.abs().max().item<double>();
}

SelfCheckReport check_on_device(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                const SequenceBatch& batch, const AttentionOptions& options, std::uint64_t seed) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const at::Tensor dout =
      (at::rand({q.size(0), q.size(1), v.size(2)}, generator, at::TensorOptions(at::kFloat)) * 2 - 1).to(q.options());
  AttentionOptions every_block = options;
  every_block.top_k = std::max<std::int64_t>(batch.max_seqlen_k, 1);
  every_block.force_previous = false;  // where all are chosen, force changes nothing
  every_block.sink_blocks = 0;
  const at::Tensor list = call_select(q, k, batch, every_block);
  const auto run = [&](std::string_view kind, const OptionalTensor& blocks) {
    const auto [out, lse] =
        attend_operator(Variant::kDevice)
            .call(q, k, v, batch.cu_seqlens_q, batch.cu_seqlens_k, batch.max_seqlen_q, batch.max_seqlen_k, kind,
                  options.block_size, 0, 0, blocks, options.softmax_scale);
    const auto [dq, dk, dv] =
        attend_backward_operator(Variant::kDevice)
            .call(dout, std::nullopt, q, k, v, out, lse, batch.cu_seqlens_q, batch.cu_seqlens_k, batch.max_seqlen_q,
                  batch.max_seqlen_k, kind, options.block_size, 0, 0, blocks, options.softmax_scale);
    return std::tuple(out, lse, dq, dk, dv);
  };
  const auto [out, lse, dq, dk, dv] = run("list", list);
  const auto [full_out, full_lse, full_dq, full_dk, full_dv] = run("all", std::nullopt);
  SelfCheckReport report;
  report.out_error = relative_error(out, full_out);
  report.lse_error = relative_error(lse, full_lse);
  report.dq_error = relative_error(dq, full_dq);
  report.dk_error = relative_error(dk, full_dk);
  report.dv_error = relative_error(dv, full_dv);
  report.tolerance = tolerance_of(q.scalar_type());
  const double worst =
      std::max({report.out_error, report.lse_error, report.dq_error, report.dk_error, report.dv_error});
  report.passed = worst <= report.tolerance;
  return report;
}

// -> float64 [7] on the CPU: the errors of out, lse, dq, dk, dv, the tolerance, and 1 if passed.
at::Tensor self_check_operator(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cu_q,
                               const at::Tensor& cu_k, std::int64_t max_q, std::int64_t max_k, std::int64_t block_size,
                               double softmax_scale, std::int64_t seed) {
  return as_operator([&] {
    AttentionOptions options;
    options.block_size = block_size;
    options.softmax_scale = softmax_scale;
    const SelfCheckReport report =
        self_check(q, k, v, {cu_q, cu_k, max_q, max_k}, options, static_cast<std::uint64_t>(seed));
    return at::tensor({report.out_error, report.lse_error, report.dq_error, report.dk_error, report.dv_error,
                       report.tolerance, report.passed ? 1.0 : 0.0},
                      at::kDouble);
  });
}

}  // namespace

SelfCheckReport self_check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const SequenceBatch& batch,
                           const AttentionOptions& options_in, std::uint64_t seed) {
  const at::NoGradGuard no_gradients;
  AttentionOptions options = options_in;
  options.kind = Kind::kMoba;
  check_queries_and_keys(q, k);
  check_values(k, v);
  check_batch(q, k, batch);
  check_options(options);
  if (!q.is_cpu()) return as_library([&] { return check_on_device(q, k, v, batch, options, seed); });
  const at::Tensor queries = last_axis_contiguous(q), keys = last_axis_contiguous(k), values = last_axis_contiguous(v);
  TorchContext context;
  return moba::self_check(context, cpu_backend_for(q), options, view_of(queries), view_of(keys), view_of(values),
                          view_of(batch), seed);
}

TORCH_LIBRARY_FRAGMENT(moba, library) {
  library.def(
      "self_check(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, "
      "SymInt max_seqlen_k, int block_size, float softmax_scale, int seed) -> Tensor");
}

TORCH_LIBRARY_IMPL(moba, CompositeExplicitAutograd, library) {
  library.impl("self_check", self_check_operator);
}

}  // namespace moba::torch_ops
