// Schemas, shapes (Meta), and calls through the dispatcher.
#include "operators.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "moba/selection.h"

namespace moba::torch_ops {
namespace {

void define(torch::Library& library, const std::string& prefix) {
  const std::string batch = "Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, ";
  const std::string selection =
      "str kind, int block_size, int window, int sink, Tensor? blocks, float softmax_scale) -> ";
  const auto def = [&](const std::string& schema) {
    library.def((prefix + schema).c_str(), {at::Tag::pt2_compliant_tag});
  };
  def("select(Tensor q, Tensor k, " + batch +
      "int block_size, int top_k, Tensor? representatives=None, "
      "bool force_previous=False, int sink_blocks=0, str share=\"head\", str share_score=\"sum_logit\", "
      "str representative_dtype=\"input\", float softmax_scale=0.0) -> Tensor");
  def("attend(Tensor q, Tensor k, Tensor v, " + batch + selection + "(Tensor out, Tensor lse)");
  def("attend_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, " + batch +
      selection + "(Tensor dq, Tensor dk, Tensor dv)");
}

at::Tensor select_meta(const at::Tensor& q, const at::Tensor& k, const at::Tensor&, const at::Tensor&, c10::SymInt,
                       c10::SymInt, std::int64_t, std::int64_t top_k, const OptionalTensor&, bool, std::int64_t,
                       std::string_view share, std::string_view, std::string_view, double) {
  const c10::SymInt lists = as_operator([&] {
    switch (share_from_name(share)) {
      case Share::kGroup: return k.sym_size(1);
      case Share::kLayer: return c10::SymInt(1);
      default: return q.sym_size(1);
    }
  });
  return at::empty_symint({q.sym_size(0), lists, top_k - 1}, q.options().dtype(at::kInt));
}

std::tuple<at::Tensor, at::Tensor> attend_meta(const at::Tensor& q, const at::Tensor&, const at::Tensor& v,
                                               const at::Tensor&, const at::Tensor&, c10::SymInt, c10::SymInt,
                                               std::string_view, std::int64_t, std::int64_t, std::int64_t,
                                               const OptionalTensor&, double) {
  const auto lse_type = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return {at::empty_symint({q.sym_size(0), q.sym_size(1), v.sym_size(2)}, q.options()),
          at::empty_symint({q.sym_size(1), q.sym_size(0)}, q.options().dtype(lse_type))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward_meta(
    const at::Tensor&, const OptionalTensor&, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymInt, c10::SymInt,
    std::string_view, std::int64_t, std::int64_t, std::int64_t, const OptionalTensor&, double) {
  return {at::empty_symint(q.sym_sizes(), q.options()), at::empty_symint(k.sym_sizes(), k.options()),
          at::empty_symint(v.sym_sizes(), v.options())};
}

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

const c10::TypedOperatorHandle<SelectSignature>& select_operator(Variant variant) {
  static const auto device = find<SelectSignature>("moba::select");
  static const auto portable = find<SelectSignature>("moba::portable_select");
  return variant == Variant::kDevice ? device : portable;
}

at::Tensor call_select(const at::Tensor& q, const at::Tensor& k, const SequenceBatch& batch,
                       const AttentionOptions& options, Variant variant) {
  const std::int64_t past = most_past_blocks(batch.max_seqlen_k, options.block_size);
  return select_operator(variant).call(q, k, batch.cu_seqlens_q, batch.cu_seqlens_k, batch.max_seqlen_q,
                                       batch.max_seqlen_k, options.block_size, std::min(options.top_k, past + 1),
                                       std::nullopt, options.force_previous, options.sink_blocks,
                                       name_of(options.share), name_of(options.share_score),
                                       name_of(options.representative_dtype), options.softmax_scale);
}

const c10::TypedOperatorHandle<AttendSignature>& attend_operator(Variant variant) {
  static const auto device = find<AttendSignature>("moba::attend");
  static const auto portable = find<AttendSignature>("moba::portable_attend");
  return variant == Variant::kDevice ? device : portable;
}

const c10::TypedOperatorHandle<AttendBackwardSignature>& attend_backward_operator(Variant variant) {
  static const auto device = find<AttendBackwardSignature>("moba::attend_backward");
  static const auto portable = find<AttendBackwardSignature>("moba::portable_attend_backward");
  return variant == Variant::kDevice ? device : portable;
}

TORCH_LIBRARY(moba, library) {
  define(library, "");
  define(library, "portable_");  // the portable backend on any device, for tests and comparisons
}

TORCH_LIBRARY_IMPL(moba, Meta, library) {
  library.impl("select", select_meta);
  library.impl("attend", attend_meta);
  library.impl("attend_backward", attend_backward_meta);
  library.impl("portable_select", select_meta);
  library.impl("portable_attend", attend_meta);
  library.impl("portable_attend_backward", attend_backward_meta);
}

// Nothing is differentiable here but `attend` (autograd.cpp): second derivatives raise.
TORCH_LIBRARY_IMPL(moba, Autograd, library) {
  library.impl("select", torch::autograd::autogradNotImplementedFallback());
  library.impl("attend_backward", torch::autograd::autogradNotImplementedFallback());
  library.impl("portable_select", torch::autograd::autogradNotImplementedFallback());
  library.impl("portable_attend_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace moba::torch_ops
