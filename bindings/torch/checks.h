// Arguments of the operators: what the host sees of them, checked before anything runs, on every device alike; and the
// way errors take between moba::Error and torch.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "moba/error.h"
#include "moba/options.h"
#include "moba_torch/attention.h"

namespace moba::torch_ops {

/// Throws Error "<argument> is <value>; it must be <rule>. <remedy>" unless `holds`.
void require(bool holds, const std::string& argument, const std::string& value, const std::string& rule,
             const std::string& remedy);

/// q [Tq, H, D] and k [Tk, HK, D] (and v [Tk, HK, Dv]): ranks, extents, dtype, device.
void check_queries_and_keys(const at::Tensor& q, const at::Tensor& k);
void check_values(const at::Tensor& k, const at::Tensor& v);
void check_batch(const at::Tensor& q, const at::Tensor& k, const SequenceBatch& batch);
/// Those of the fields of `options` that its kind uses, and softmax_scale. Forced blocks must find room in top_k, but
/// where top_k takes in every past block of sequences of max_seqlen_k keys.
void check_options(const AttentionOptions& options,
                   std::int64_t max_seqlen_k = std::numeric_limits<std::int64_t>::max());
/// Representatives of keys like k that a caller gives: [any, HK, D], of the dtype of k or wider (accumulator_type).
void check_representatives(const at::Tensor& k, const at::Tensor& representatives);
/// A list of blocks for q: int32 [Tq, H, HK or 1, budget].
void check_blocks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& blocks);
/// The forward's results and their gradients, as attend_backward takes them.
void check_results(const at::Tensor& q, const at::Tensor& v, const at::Tensor& dout,
                   const std::optional<at::Tensor>& dlse, const at::Tensor& out, const at::Tensor& lse);

/// What kernels clamp in silence: offsets out of order or range, lengths above the maxima. Reads them back, which waits
/// for the device, and throws Error.
void check_device_values(const at::Tensor& q, const at::Tensor& k, const SequenceBatch& batch);

/// The dtype of lse: float32, or float64 beside float64.
inline at::ScalarType accumulator_type(const at::Tensor& q) {
  return q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// Raises a moba::Error as the torch error that Python knows: ValueError, or torch.OutOfMemoryError for kWorkspace.
[[noreturn]] void raise_as_torch_error(const Error& error);

/// Runs the body of an operator.
template <class F>
auto as_operator(F&& body) {
  try {
    return std::forward<F>(body)();
  } catch (const Error& error) {
    raise_as_torch_error(error);
  }
}

/// Calls operators on behalf of C++ code, which is promised moba::Error.
template <class F>
auto as_library(F&& call) {
  try {
    return std::forward<F>(call)();
  } catch (const c10::ValueError& error) {
    throw Error(ErrorCode::kInvalidArgument, error.what_without_backtrace());
  } catch (const c10::OutOfMemoryError& error) {
    throw Error(ErrorCode::kWorkspace, error.what_without_backtrace());
  }
}

}  // namespace moba::torch_ops
