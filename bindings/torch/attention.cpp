#include "moba_torch/attention.h"

#include <ATen/core/grad_mode.h>

#include "checks.h"
#include "moba/selection.h"
#include "operators.h"

namespace moba::torch_ops {
namespace {

/// Every row attends all it may see: full attention, for which a GPU has dense kernels of its own.
bool is_dense(const at::Tensor& q, const SequenceBatch& batch, const AttentionOptions& options) {
  if (options.kind == Kind::kFull || (options.compat_topk1_full && options.top_k == 1)) return true;
  return q.is_cuda() && options.top_k > most_past_blocks(batch.max_seqlen_k, options.block_size);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const SequenceBatch& batch, const AttentionOptions& options,
                                             bool check_values) {
  check_queries_and_keys(q, k);
  torch_ops::check_values(k, v);
  check_batch(q, k, batch);
  check_options(options);
  if (check_values) check_device_values(q, k, batch);

  const auto attend = [&](std::string_view kind, const OptionalTensor& blocks) {
    return as_library([&] {
      return attend_operator(Variant::kDevice)
          .call(q, k, v, batch.cu_seqlens_q, batch.cu_seqlens_k, batch.max_seqlen_q, batch.max_seqlen_k, kind,
                options.block_size, options.window, options.sink, blocks, options.softmax_scale);
    });
  };
  if (options.kind == Kind::kWindow) return attend("span", std::nullopt);
  if (is_dense(q, batch, options)) return attend("all", std::nullopt);
  const at::Tensor blocks = as_library([&] {
    const at::NoGradGuard no_gradient_through_the_choice;
    return call_select(q, k, batch, options);
  });
  return attend("list", blocks);
}

}  // namespace moba::torch_ops
