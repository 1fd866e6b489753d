#include "lm/model/ops.h"

#include <memory>
#include <utility>

#include "lm/model/row_kernels.h"

namespace moba::lm {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor swiglu_product(const Tensor& gate, const Tensor& up) {
  if (has_row_kernels(gate)) return swiglu_rows(gate.contiguous(), up.contiguous());
  return at::silu(gate).mul_(up);
}

class SwiGlu : public torch::autograd::Function<SwiGlu> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& gate, const Tensor& up) {
    context->save_for_backward({gate, up});
    return swiglu_product(gate, up);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &gate = saved[0], &up = saved[1], &dout = gradients[0];
    const Tensor dup = at::silu(gate).mul_(dout);
    const Tensor dgate = at::silu_backward(dout * up, gate);
    return {dgate, dup};
  }
};

/// The CPU's norm in one pass; its backward pass is that of ATen's, run again.
class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight, double epsilon) {
    context->save_for_backward({x, weight});
    context->saved_data["epsilon"] = epsilon;
    return rms_norm_rows(x.contiguous(), weight.contiguous(), epsilon);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor x = saved[0].detach().requires_grad_(), weight = saved[1].detach().requires_grad_();
    Tensor out;
    {
      const torch::AutoGradMode with_gradients(true);
      out = at::rms_norm(x, {x.size(-1)}, weight, context->saved_data["epsilon"].toDouble());
    }
    const variable_list found = torch::autograd::grad({out}, {x, weight}, {gradients[0]});
    return {found[0], found[1], Tensor()};
  }
};

using Body = std::function<Tensor(const Tensor&)>;

/// Carries a C++ closure through AutogradContext::saved_data.
struct BodyHolder : torch::CustomClassHolder {
  explicit BodyHolder(Body body_in) : body(std::move(body_in)) {}
  Body body;
};

class Recompute : public torch::autograd::Function<Recompute> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const c10::intrusive_ptr<BodyHolder>& holder,
                        at::TensorList parameters) {
    variable_list saved{x};
    saved.insert(saved.end(), parameters.begin(), parameters.end());
    context->save_for_backward(saved);
    context->saved_data["body"] = c10::IValue::make_capsule(holder);
    return holder->body(x);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const auto capsule = context->saved_data["body"].toCapsule();
    const auto& body = static_cast<const BodyHolder&>(*capsule).body;
    variable_list inputs{saved[0].detach().requires_grad_()};
    inputs.insert(inputs.end(), saved.begin() + 1, saved.end());  // the body reads the parameters themselves
    Tensor out;
    {
      const torch::AutoGradMode with_gradients(true);
      out = body(inputs[0]);
    }
    const variable_list found = torch::autograd::grad({out}, inputs, {gradients[0]});
    variable_list result{found[0], Tensor()};  // none for the body
    result.insert(result.end(), found.begin() + 1, found.end());
    return result;
  }
};

}  // namespace

Tensor project(const Tensor& x, const std::vector<Tensor>& weights) {
  constexpr std::int64_t kFewRows = 4;
  if (x.size(0) <= kFewRows && has_row_kernels(x) && !torch::GradMode::is_enabled()) {
    std::vector<Tensor> cast;
    for (const Tensor& weight : weights) cast.push_back(weight.to(x.scalar_type()).contiguous());
    return project_few_rows(x.contiguous(), cast);
  }
  const auto product = [&x](const Tensor& weight) { return at::linear(x, weight.to(x.scalar_type())); };
  if (weights.size() == 1) return product(weights[0]);
  // One wide product is faster than several, but the stacked weights are a copy: a decode step (one row) would copy far
  // more than it computes. Stack whichever side is smaller, weights [M, N] or results [T, M].
  if (x.size(0) >= x.size(1)) return product(torch::cat(weights));
  std::vector<Tensor> results;
  for (const Tensor& weight : weights) results.push_back(product(weight));
  return torch::cat(results, 1);
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double epsilon) {
  // Equal dtypes select ATen's fused kernel on CUDA, which computes in float32 inside.
  const Tensor factors = weight.to(x.scalar_type());
  if (!has_row_kernels(x)) return at::rms_norm(x, {x.size(-1)}, factors, epsilon);
  // A node of the graph costs a decode step more than the norm itself.
  if (!torch::GradMode::is_enabled()) return rms_norm_rows(x.contiguous(), factors.contiguous(), epsilon);
  return RmsNorm::apply(x, factors, epsilon);
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  return torch::GradMode::is_enabled() ? SwiGlu::apply(gate, up) : swiglu_product(gate, up);
}

Tensor recompute_in_backward(const Body& body, const Tensor& x, const std::vector<Tensor>& parameters) {
  std::vector<Tensor> wanted;  // frozen parameters are read by the body all the same
  for (const Tensor& parameter : parameters) {
    if (parameter.requires_grad()) wanted.push_back(parameter);
  }
  return Recompute::apply(x, c10::make_intrusive<BodyHolder>(body), at::TensorList(wanted));
}

}  // namespace moba::lm
