// The operators of namespace `moba` as C++ functions that go through torch's dispatcher: autograd, tracing and the
// backend of the tensors' device included.
//
//   select(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, block_size, top_k, representatives?,
//          force_previous, sink_blocks, share, share_score, representative_dtype, softmax_scale)
//       -> int32 [Tq, H or HK or 1 as `share` says, top_k - 1]
//   attend(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, kind, block_size, window, sink, blocks?,
//          softmax_scale) -> (out [Tq, H, Dv], lse [H, Tq])
//   attend_backward(dout, dlse?, q, k, v, out, lse, …as attend) -> (dq, dk, dv)
//
// `kind` is "all", "span" (window, sink) or "list" (block_size, blocks); see moba/selection.h. All are functional, with
// shapes that follow from the arguments' shapes. softmax_scale 0 means 1/sqrt(D).
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "moba_torch/attention.h"

namespace moba::torch_ops {

using OptionalTensor = std::optional<at::Tensor>;

using SelectSignature = at::Tensor(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_q,
                                   const at::Tensor& cu_k, c10::SymInt max_q, c10::SymInt max_k,
                                   std::int64_t block_size, std::int64_t top_k, const OptionalTensor& representatives,
                                   bool force_previous, std::int64_t sink_blocks, std::string_view share,
                                   std::string_view share_score, std::string_view representative_dtype,
                                   double softmax_scale);

using AttendSignature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& q, const at::Tensor& k,
                                                           const at::Tensor& v, const at::Tensor& cu_q,
                                                           const at::Tensor& cu_k, c10::SymInt max_q, c10::SymInt max_k,
                                                           std::string_view kind, std::int64_t block_size,
                                                           std::int64_t window, std::int64_t sink,
                                                           const OptionalTensor& blocks, double softmax_scale);

using AttendBackwardSignature = std::tuple<at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor& dout, const OptionalTensor& dlse, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& out, const at::Tensor& lse, const at::Tensor& cu_q, const at::Tensor& cu_k, c10::SymInt max_q,
    c10::SymInt max_k, std::string_view kind, std::int64_t block_size, std::int64_t window, std::int64_t sink,
    const OptionalTensor& blocks, double softmax_scale);

/// kDevice: the backend of the tensors' device. kPortable: the portable backend whatever the device ("portable_…").
enum class Variant { kDevice, kPortable };

const c10::TypedOperatorHandle<SelectSignature>& select_operator(Variant variant = Variant::kDevice);
/// select_operator(variant) with the fields of `options` as arguments: no more blocks a row than the longest sequence
/// has, whatever options.top_k.
at::Tensor call_select(const at::Tensor& q, const at::Tensor& k, const SequenceBatch& batch,
                       const AttentionOptions& options, Variant variant = Variant::kDevice);
const c10::TypedOperatorHandle<AttendSignature>& attend_operator(Variant variant);
const c10::TypedOperatorHandle<AttendBackwardSignature>& attend_backward_operator(Variant variant);

}  // namespace moba::torch_ops
