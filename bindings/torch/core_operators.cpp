// The operators through the core: its backends on the CPU, and its native kernels on CUDA.
#include <torch/library.h>

#include "arguments.h"
#include "core.h"
#include "implementations.h"
#include "moba/pipeline.h"

namespace moba::torch_ops {
namespace {

Selection core_selection(const portable::TensorSelection& selection) {
  Selection core;
  core.kind = selection.kind;
  core.window = selection.window;
  core.sink = selection.sink;
  core.block_size = selection.block_size;
  core.blocks = view_of(selection.blocks);
  return core;
}

}  // namespace

at::Tensor select_core(const at::Tensor& q_in, const at::Tensor& k_in, const at::Tensor& cu_q, const at::Tensor& cu_k,
                       std::int64_t max_q, std::int64_t max_k, std::int64_t block_size, std::int64_t top_k,
                       const OptionalTensor& representatives, bool force_previous, std::int64_t sink_blocks,
                       std::string_view share, std::string_view share_score, std::string_view representative_dtype,
                       double softmax_scale) {
  return as_operator([&] {
    const SequenceBatch batch{cu_q, cu_k, max_q, max_k};
    check_queries_and_keys(q_in, k_in);
    check_batch(q_in, k_in, batch);
    const AttentionOptions options = gate_options(block_size, top_k, force_previous, sink_blocks, share, share_score,
                                                  representative_dtype, softmax_scale, max_k);
    const at::Tensor q = last_axis_contiguous(q_in), k = last_axis_contiguous(k_in);
    at::Tensor blocks = at::empty({q.size(0), lists_of(options.share, q, k), top_k - 1}, q.options().dtype(at::kInt));
    at::Tensor means;
    if (representatives.has_value() && representatives->defined()) means = last_axis_contiguous(*representatives);
    Selection selection;
    selection.kind = SelectionKind::kList;
    selection.block_size = block_size;
    selection.blocks = view_of(blocks);
    Engine engine(q);
    moba::select(engine.context(), engine.backend(), options, view_of(q), view_of(k), view_of(means), view_of(batch),
                 selection);
    return blocks;
  });
}

std::tuple<at::Tensor, at::Tensor> attend_core(const at::Tensor& q_in, const at::Tensor& k_in, const at::Tensor& v_in,
                                               const at::Tensor& cu_q, const at::Tensor& cu_k, std::int64_t max_q,
                                               std::int64_t max_k, std::string_view kind, std::int64_t block_size,
                                               std::int64_t window, std::int64_t sink, const OptionalTensor& blocks,
                                               double softmax_scale) {
  return as_operator([&] {
    const SequenceBatch batch{cu_q, cu_k, max_q, max_k};
    check_queries_and_keys(q_in, k_in);
    check_values(k_in, v_in);
    check_batch(q_in, k_in, batch);
    portable::TensorSelection selection = selection_of(q_in, k_in, kind, block_size, window, sink, blocks);
    if (selection.blocks.defined()) selection.blocks = selection.blocks.contiguous();
    const at::Tensor q = last_axis_contiguous(q_in), k = last_axis_contiguous(k_in), v = last_axis_contiguous(v_in);
    at::Tensor out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
    at::Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(accumulator_type(q)));
    Engine engine(q);
    moba::attend(engine.context(), engine.backend(),
                 {view_of(q), view_of(k), view_of(v), view_of(batch), core_selection(selection), softmax_scale,
                  Partial{view_of(out), view_of(lse)}});
    return std::tuple(out, lse);
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward_core(
    const at::Tensor& dout_in, const OptionalTensor& dlse_in, const at::Tensor& q_in, const at::Tensor& k_in,
    const at::Tensor& v_in, const at::Tensor& out_in, const at::Tensor& lse_in, const at::Tensor& cu_q,
    const at::Tensor& cu_k, std::int64_t max_q, std::int64_t max_k, std::string_view kind, std::int64_t block_size,
    std::int64_t window, std::int64_t sink, const OptionalTensor& blocks, double softmax_scale) {
  return as_operator([&] {
    const SequenceBatch batch{cu_q, cu_k, max_q, max_k};
    check_queries_and_keys(q_in, k_in);
    check_values(k_in, v_in);
    check_batch(q_in, k_in, batch);
    check_results(q_in, v_in, dout_in, dlse_in, out_in, lse_in);
    portable::TensorSelection selection = selection_of(q_in, k_in, kind, block_size, window, sink, blocks);
    if (selection.blocks.defined()) selection.blocks = selection.blocks.contiguous();
    const at::Tensor q = last_axis_contiguous(q_in), k = last_axis_contiguous(k_in), v = last_axis_contiguous(v_in);
    const at::Tensor dout = dout_in.contiguous(), out = out_in.contiguous(), lse = lse_in.contiguous();
    const at::Tensor dlse = dlse_in.has_value() && dlse_in->defined() ? dlse_in->contiguous() : at::Tensor();
    at::Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
    at::Tensor dv = at::empty(v.sizes(), v.options());
    AttendBackwardArgs args;
    args.q = view_of(q);
    args.k = view_of(k);
    args.v = view_of(v);
    args.batch = view_of(batch);
    args.selection = core_selection(selection);
    args.softmax_scale = softmax_scale;
    args.out = view_of(out);
    args.lse = view_of(lse);
    args.dout = view_of(dout);
    args.dlse = view_of(dlse);
    args.dq = view_of(dq);
    args.dk = view_of(dk);
    args.dv = view_of(dv);
    Engine engine(q);
    moba::attend_backward(engine.context(), engine.backend(), args);
    return std::tuple(dq, dk, dv);
  });
}

TORCH_LIBRARY_IMPL(moba, CPU, library) {
  library.impl("select", select_core);
  library.impl("attend", attend_core);
  library.impl("attend_backward", attend_backward_core);
}

}  // namespace moba::torch_ops
