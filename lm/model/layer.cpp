#include "lm/model/layer.h"

#include <fmt/format.h>

#include <memory>
#include <utility>

#include "lm/model/ops.h"

namespace moba::lm {

using torch::Tensor;

Tensor register_by_path(torch::nn::Module& root, const std::string& path, std::vector<std::int64_t> shape) {
  torch::nn::Module* module = &root;
  std::size_t begin = 0;
  for (std::size_t dot = path.find('.'); dot != std::string::npos; dot = path.find('.', begin)) {
    const std::string name = path.substr(begin, dot - begin);
    const auto children = module->named_children();
    const auto* child = children.find(name);
    module = child != nullptr ? child->get()
                              : module->register_module(name, std::make_shared<torch::nn::Module>(name)).get();
    begin = dot + 1;
  }
  return module->register_parameter(path.substr(begin), torch::empty(shape, torch::kFloat32));
}

ModelImpl::Layer::Layer(torch::nn::Module& root, const ModelConfig& config, std::int64_t index)
    : heads(config.num_attention_heads), kv_heads(config.num_key_value_heads), epsilon(config.rms_norm_eps) {
  const std::int64_t hidden = config.hidden_size, q_width = heads * config.head_dim,
                     kv_width = kv_heads * config.head_dim;
  const auto make = [&](const char* name, std::vector<std::int64_t> shape) {
    return register_by_path(root, fmt::format("model.layers.{}.{}.weight", index, name), std::move(shape));
  };
  input_norm = make("input_layernorm", {hidden});
  q_proj = make("self_attn.q_proj", {q_width, hidden});
  k_proj = make("self_attn.k_proj", {kv_width, hidden});
  v_proj = make("self_attn.v_proj", {kv_width, hidden});
  o_proj = make("self_attn.o_proj", {hidden, q_width});
  if (config.qk_norm) {
    q_norm = make("self_attn.q_norm", {config.head_dim});
    k_norm = make("self_attn.k_norm", {config.head_dim});
  }
  post_attention_norm = make("post_attention_layernorm", {hidden});
  gate_proj = make("mlp.gate_proj", {config.intermediate_size, hidden});
  up_proj = make("mlp.up_proj", {config.intermediate_size, hidden});
  down_proj = make("mlp.down_proj", {hidden, config.intermediate_size});
}

std::vector<Tensor> ModelImpl::Layer::parameters() const {
  std::vector<Tensor> all{input_norm,          q_proj,    k_proj,  v_proj,   o_proj,
                          post_attention_norm, gate_proj, up_proj, down_proj};
  if (q_norm.defined()) all.insert(all.end(), {q_norm, k_norm});
  return all;
}

AttentionInputs ModelImpl::Layer::project_heads(const Tensor& normed, const RopeTable& rope, bool queries,
                                                bool keys) const {
  std::vector<Tensor> weights;
  if (queries) weights.push_back(q_proj);
  if (keys) weights.insert(weights.end(), {k_proj, v_proj});
  const std::int64_t q_heads = queries ? heads : 0, k_heads = keys ? kv_heads : 0, all = q_heads + 2 * k_heads;
  Tensor qkv = project(normed, weights);  // [R, (q_heads + 2 k_heads) * D]
  if (q_norm.defined()) {
    const std::vector<Tensor> parts =
        qkv.view({qkv.size(0), all, qkv.size(1) / all}).split_with_sizes({q_heads, k_heads, k_heads}, 1);
    qkv =
        torch::cat({rms_norm(parts[0], q_norm, epsilon), rms_norm(parts[1], k_norm, epsilon), parts[2]}, 1).flatten(1);
  }
  auto [q, k, v] = split_and_rotate(qkv, rope, q_heads, k_heads);
  return {q, k, v};
}

AttentionInputs ModelImpl::Layer::attention_inputs(const Tensor& x, const RopeTable& rope, std::int64_t rows) const {
  const Tensor normed = rms_norm(x, input_norm, epsilon);  // [T, hidden]
  const std::int64_t total = x.size(0);
  if (rows == total) return project_heads(normed, rope, true, true);
  AttentionInputs inputs = project_heads(normed, rope, false, true);
  inputs.q = project_heads(normed.narrow(0, total - rows, rows), rope.last(rows), true, false).q;
  return inputs;
}

Tensor ModelImpl::Layer::add_attended(const Tensor& x, const Tensor& attended) const {
  const Tensor middle = x + project(attended.flatten(1), {o_proj});
  const Tensor normed = rms_norm(middle, post_attention_norm, epsilon);
  return middle + project(swiglu(project(normed, {gate_proj}), project(normed, {up_proj})), {down_proj});
}

}  // namespace moba::lm
