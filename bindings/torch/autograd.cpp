// The one derivative of attention, under the Autograd key: C++ programs, Python and torch.compile all pass through it.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "operators.h"

namespace moba::torch_ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <Variant kVariant>
class AttendFunction : public torch::autograd::Function<AttendFunction<kVariant>> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const at::Tensor& cu_q, const at::Tensor& cu_k, const c10::SymInt& max_q,
                               const c10::SymInt& max_k, const std::string& kind, std::int64_t block_size,
                               std::int64_t window, std::int64_t sink, const OptionalTensor& blocks,
                               double softmax_scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [out, lse] = attend_operator(kVariant).call(q, k, v, cu_q, cu_k, max_q, max_k, kind, block_size, window, sink,
                                                     blocks, softmax_scale);
    context->save_for_backward({q, k, v, out, lse, cu_q, cu_k, blocks.value_or(at::Tensor())});
    context->saved_data["max_q"] = max_q;
    context->saved_data["max_k"] = max_k;
    context->saved_data["kind"] = kind;
    context->saved_data["block_size"] = block_size;
    context->saved_data["window"] = window;
    context->saved_data["sink"] = sink;
    context->saved_data["softmax_scale"] = softmax_scale;
    context->set_materialize_grads(false);
    return {out, lse};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    variable_list inputs(13);  // one for each argument of forward; only q, k, v have a gradient
    const at::Tensor& dlse = gradients[1];
    if (!gradients[0].defined() && !dlse.defined()) return inputs;
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& out = saved[3];
    const at::Tensor dout = gradients[0].defined() ? gradients[0] : at::zeros_symint(out.sym_sizes(), out.options());
    auto& data = context->saved_data;
    std::tie(inputs[0], inputs[1], inputs[2]) = attend_backward_operator(kVariant).call(
        dout, dlse.defined() ? OptionalTensor(dlse) : std::nullopt, saved[0], saved[1], saved[2], out, saved[4],
        saved[5], saved[6], data["max_q"].toSymInt(), data["max_k"].toSymInt(), data["kind"].toStringRef(),
        data["block_size"].toInt(), data["window"].toInt(), data["sink"].toInt(),
        saved[7].defined() ? OptionalTensor(saved[7]) : std::nullopt, data["softmax_scale"].toDouble());
    return inputs;
  }
};

template <Variant kVariant>
std::tuple<at::Tensor, at::Tensor> attend_autograd(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                   const at::Tensor& cu_q, const at::Tensor& cu_k, c10::SymInt max_q,
                                                   c10::SymInt max_k, std::string_view kind, std::int64_t block_size,
                                                   std::int64_t window, std::int64_t sink, const OptionalTensor& blocks,
                                                   double softmax_scale) {
  const variable_list result = AttendFunction<kVariant>::apply(q, k, v, cu_q, cu_k, max_q, max_k, std::string(kind),
                                                               block_size, window, sink, blocks, softmax_scale);
  return {result[0], result[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(moba, Autograd, library) {
  library.impl("attend", attend_autograd<Variant::kDevice>);
  library.impl("portable_attend", attend_autograd<Variant::kPortable>);
}

}  // namespace moba::torch_ops
