// The operators on CUDA tensors: native kernels for what they were made for, the portable backend for the rest.
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <mutex>
#include <set>

#include "implementations.h"
#include "native.h"

namespace moba::torch_ops {
namespace {

// Once a reason: a silent fallback to something slower would be found out by a stopwatch only.
void warn_portable(const std::string& reason) {
  static std::mutex mutex;
  static std::set<std::string> warned;
  const std::lock_guard lock(mutex);
  if (warned.insert(reason).second)
    TORCH_WARN("libmoba uses the portable CUDA backend, not its native kernels: ", reason);
}

bool is_native(const at::Tensor& q, const NativeProblem& problem) {
  // float32 is the portable backend's own field, on every GPU.
  if (problem.dtype == at::kFloat) return false;
  if (const auto reason = native_device_problem(q.device().index())) {
    warn_portable(*reason);
    return false;
  }
  if (const auto reason = native_limit(problem)) {
    warn_portable(*reason);
    return false;
  }
  return true;
}

// Odd ranks are refused by the checks of either implementation.
bool is_native_choice(const at::Tensor& q, std::int64_t block_size, std::int64_t top_k,
                      const OptionalTensor& representatives, std::string_view share, std::string_view share_score,
                      std::string_view representative_dtype) {
  if (q.dim() != 3 || block_size < 1 || top_k < 1) return false;
  NativeProblem problem{q.scalar_type(), q.size(2), 0, block_size, top_k - 1};
  problem.sums_logits = share == name_of(Share::kHead) || share_score == name_of(ShareScore::kSumLogit);
  problem.rounded_means = representatives.has_value() && representatives->defined()
                              ? representatives->scalar_type() == q.scalar_type()
                              : representative_dtype == name_of(RepresentativeDType::kInput);
  return is_native(q, problem);
}

bool is_native_list(const at::Tensor& q, const at::Tensor& v, std::string_view kind, std::int64_t block_size,
                    const OptionalTensor& blocks) {
  if (kind != "list" || q.dim() != 3 || v.dim() != 3 || block_size < 1) return false;
  if (!blocks.has_value() || !blocks->defined() || blocks->dim() != 3) return false;
  return is_native(q, {.dtype = q.scalar_type(),
                       .head_dim = q.size(2),
                       .value_dim = v.size(2),
                       .block_size = block_size,
                       .budget = blocks->size(2)});
}

at::Tensor select_cuda(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_q, const at::Tensor& cu_k,
                       std::int64_t max_q, std::int64_t max_k, std::int64_t block_size, std::int64_t top_k,
                       const OptionalTensor& representatives, bool force_previous, std::int64_t sink_blocks,
                       std::string_view share, std::string_view share_score, std::string_view representative_dtype,
                       double softmax_scale) {
  const c10::OptionalDeviceGuard guard(q.device());
  const auto run = is_native_choice(q, block_size, top_k, representatives, share, share_score, representative_dtype)
                       ? select_core
                       : select_portable;
  return run(q, k, cu_q, cu_k, max_q, max_k, block_size, top_k, representatives, force_previous, sink_blocks, share,
             share_score, representative_dtype, softmax_scale);
}

std::tuple<at::Tensor, at::Tensor> attend_cuda(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                               const at::Tensor& cu_q, const at::Tensor& cu_k, std::int64_t max_q,
                                               std::int64_t max_k, std::string_view kind, std::int64_t block_size,
                                               std::int64_t window, std::int64_t sink, const OptionalTensor& blocks,
                                               double softmax_scale) {
  const c10::OptionalDeviceGuard guard(q.device());
  const auto run = is_native_list(q, v, kind, block_size, blocks) ? attend_core : attend_portable;
  return run(q, k, v, cu_q, cu_k, max_q, max_k, kind, block_size, window, sink, blocks, softmax_scale);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward_cuda(
    const at::Tensor& dout, const OptionalTensor& dlse, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& out, const at::Tensor& lse, const at::Tensor& cu_q, const at::Tensor& cu_k, std::int64_t max_q,
    std::int64_t max_k, std::string_view kind, std::int64_t block_size, std::int64_t window, std::int64_t sink,
    const OptionalTensor& blocks, double softmax_scale) {
  const c10::OptionalDeviceGuard guard(q.device());
  const auto run = is_native_list(q, v, kind, block_size, blocks) ? attend_backward_core : attend_backward_portable;
  return run(dout, dlse, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, kind, block_size, window, sink, blocks,
             softmax_scale);
}

}  // namespace

TORCH_LIBRARY_IMPL(moba, CUDA, library) {
  library.impl("select", select_cuda);
  library.impl("attend", attend_cuda);
  library.impl("attend_backward", attend_backward_cuda);
}

}  // namespace moba::torch_ops
