// The diagnosis of a choice over torch tensors, through the operators: what is looked at is what the model runs.
#include "moba_torch/diagnose.h"

#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include "arguments.h"
#include "core.h"
#include "moba/diagnose.h"
#include "moba/pipeline.h"

namespace moba::torch_ops {
namespace {

// Of the listed blocks, on the host whatever the device: one pass of plain loops.
at::Tensor scores_of(const at::Tensor& q_in, const at::Tensor& k_in, const SequenceBatch& batch_in,
                     const AttentionOptions& options, const at::Tensor& blocks_in) {
  const at::Tensor q = last_axis_contiguous(q_in.cpu()), k = last_axis_contiguous(k_in.cpu());
  const at::Tensor blocks = blocks_in.cpu().contiguous();
  const SequenceBatch batch{batch_in.cu_seqlens_q.cpu(), batch_in.cu_seqlens_k.cpu(), batch_in.max_seqlen_q,
                            batch_in.max_seqlen_k};
  const bool wide = options.representative_dtype == RepresentativeDType::kFloat32;
  const at::Tensor means =
      at::empty({block_rows(k.size(0), batch.cu_seqlens_k.size(0) - 1, options.block_size), k.size(1), k.size(2)},
                k.options().dtype(wide ? accumulator_type(k) : k.scalar_type()));
  at::Tensor scores = at::empty(blocks.sizes(), q.options().dtype(accumulator_type(q)));
  TorchContext context;
  moba::pool(context, cpu_backend_for(q), {view_of(k), view_of(batch), options.block_size, view_of(means)});
  Selection selection;
  selection.kind = SelectionKind::kList;
  selection.block_size = options.block_size;
  selection.blocks = view_of(blocks);
  moba::list_scores(context,
                    {view_of(q), view_of(means), view_of(batch), selection, moba::rule_of(options, view_of(q))},
                    view_of(scores));
  return scores.to(q_in.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> diagnose_operator(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_q, const at::Tensor& cu_k, std::int64_t max_q,
    std::int64_t max_k, std::string_view kind, std::int64_t block_size, std::int64_t top_k, bool force_previous,
    std::int64_t sink_blocks, std::string_view share, std::string_view share_score,
    std::string_view representative_dtype, std::int64_t window, std::int64_t sink, double softmax_scale,
    bool compat_topk1_full) {
  return as_operator([&] {
    AttentionOptions options;
    options.kind = kind_from_name(kind);
    options.block_size = block_size;
    options.top_k = top_k;
    options.force_previous = force_previous;
    options.sink_blocks = sink_blocks;
    options.share = share_from_name(share);
    options.share_score = share_score_from_name(share_score);
    options.representative_dtype = representative_dtype_from_name(representative_dtype);
    options.window = window;
    options.sink = sink;
    options.softmax_scale = softmax_scale;
    options.compat_topk1_full = compat_topk1_full;
    Diagnosis found = diagnose(q, k, {cu_q, cu_k, max_q, max_k}, options);
    if (!found.blocks.defined()) {
      found.blocks = at::empty({q.size(0), 0, 0}, q.options().dtype(at::kInt));
      found.scores = at::empty({q.size(0), 0, 0}, q.options().dtype(accumulator_type(q)));
    }
    return std::tuple(found.blocks, found.scores, found.mass);
  });
}

}  // namespace

Diagnosis diagnose(const at::Tensor& q, const at::Tensor& k, const SequenceBatch& batch,
                   const AttentionOptions& options) {
  const at::NoGradGuard no_gradients;
  check_queries_and_keys(q, k);
  check_batch(q, k, batch);
  check_options(options);
  Diagnosis found;
  // The values are of no account for the lse; the keys serve.
  const auto lse_of = [&](std::string_view kind, const OptionalTensor& blocks) {
    return std::get<1>(attend_operator(Variant::kDevice)
                           .call(q, k, k, batch.cu_seqlens_q, batch.cu_seqlens_k, batch.max_seqlen_q,
                                 batch.max_seqlen_k, kind, options.block_size, options.window, options.sink, blocks,
                                 options.softmax_scale));
  };
  return as_library([&] {
    const at::Tensor full = lse_of("all", std::nullopt);
    at::Tensor chosen = full;
    if (options.kind == Kind::kWindow) {
      chosen = lse_of("span", std::nullopt);
    } else if (options.kind == Kind::kMoba && !(options.compat_topk1_full && options.top_k == 1)) {
      found.blocks = call_select(q, k, batch, options);
      found.scores = scores_of(q, k, batch, options, found.blocks);
      chosen = lse_of("list", found.blocks);
    }
    // A row without a key misses nothing; roundings may take a share above 1.
    found.mass = at::exp(chosen - full).masked_fill(full.isneginf(), 1.0).clamp_max(1.0);
    return found;
  });
}

TORCH_LIBRARY_FRAGMENT(moba, library) {
  library.def(
      "diagnose(Tensor q, Tensor k, Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt "
      "max_seqlen_k, str kind, int block_size, int top_k, bool force_previous, int sink_blocks, str share, "
      "str share_score, str representative_dtype, int window, int sink, float softmax_scale, bool compat_topk1_full) "
      "-> (Tensor blocks, Tensor scores, Tensor mass)");
}

TORCH_LIBRARY_IMPL(moba, CompositeExplicitAutograd, library) {
  library.impl("diagnose", diagnose_operator);
}

}  // namespace moba::torch_ops
