#include "lm/train/optimizer.h"

#include <fmt/core.h>

#include "moba/error.h"

namespace moba::lm {

AdamW::AdamW(Model& model, const OptimizerConfig& config) : config_(config) {
  Group matrices, others;
  matrices.weight_decay = config.weight_decay;
  for (const auto& item : model->named_parameters()) {
    Group& group = item.value().dim() >= 2 ? matrices : others;
    group.names.push_back(item.key());
    group.parameters.push_back(item.value());
    group.exp_avg.push_back(torch::zeros_like(item.value()));
    group.exp_avg_sq.push_back(torch::zeros_like(item.value()));
  }
  const torch::Device device = matrices.parameters.front().device();
  steps_ = torch::zeros({}, torch::TensorOptions().dtype(torch::kFloat32).device(device));
  groups_ = {std::move(matrices), std::move(others)};
}

AdamW::StepInfo AdamW::step(double learning_rate) {
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> gradients;
  for (Group& group : groups_) {
    for (torch::Tensor& parameter : group.parameters) {
      if (!parameter.grad().defined()) parameter.mutable_grad() = torch::zeros_like(parameter);
      gradients.push_back(parameter.grad());
    }
  }
  const torch::Tensor norm = torch::linalg_vector_norm(torch::stack(at::_foreach_norm(gradients, 2)));
  if (config_.clip > 0) {
    // A factor of 1 leaves the bits as they are, so one path serves clipped and unclipped steps.
    at::_foreach_mul_(gradients, torch::clamp_max(config_.clip / (norm + 1e-6), 1.0));
  }
  const torch::Tensor skipped = torch::logical_not(torch::isfinite(norm)).to(torch::kFloat32);
  steps_ += 1 - skipped;

  std::size_t first = 0;
  for (Group& group : groups_) {
    const std::size_t count = group.parameters.size();
    if (count == 0) continue;
    const at::TensorList group_gradients = at::TensorList(gradients).slice(first, count);
    const std::vector<torch::Tensor> steps(count, steps_);  // the kernels only read it
    at::_fused_adamw_(group.parameters, group_gradients, group.exp_avg, group.exp_avg_sq, {}, steps, learning_rate,
                      config_.beta1, config_.beta2, group.weight_decay, config_.eps, /*amsgrad=*/false,
                      /*maximize=*/false, /*grad_scale=*/std::nullopt, /*found_inf=*/skipped);
    for (torch::Tensor& parameter : group.parameters) parameter.mutable_grad() = torch::Tensor();
    first += count;
  }
  return {norm, skipped};
}

NamedTensors AdamW::state() const {
  NamedTensors state{{"step", steps_.to(torch::kCPU).clone()}};
  for (const Group& group : groups_) {
    for (std::size_t i = 0; i < group.names.size(); ++i) {
      state["exp_avg." + group.names[i]] = group.exp_avg[i].to(torch::kCPU).clone();
      state["exp_avg_sq." + group.names[i]] = group.exp_avg_sq[i].to(torch::kCPU).clone();
    }
  }
  return state;
}

void AdamW::load_state(const NamedTensors& state, const std::string& where) {
  const torch::NoGradGuard no_grad;
  std::size_t used = 0;
  const auto load = [&](const std::string& name, torch::Tensor& target) {
    const auto found = state.find(name);
    if (found == state.end())
      throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: tensor '{}' is missing", where, name));
    if (found->second.sizes() != target.sizes())
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("{}: tensor '{}' has another shape than the model's", where, name));
    target.copy_(found->second);
    ++used;
  };
  load("step", steps_);
  for (Group& group : groups_) {
    for (std::size_t i = 0; i < group.names.size(); ++i) {
      load("exp_avg." + group.names[i], group.exp_avg[i]);
      load("exp_avg_sq." + group.names[i], group.exp_avg_sq[i]);
    }
  }
  if (used != state.size())
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: it holds {} tensors where the model has {}", where, state.size(), used));
}

}  // namespace moba::lm
