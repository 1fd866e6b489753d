// One decoder layer: attention and SwiGLU, each behind an RMSNorm and added to the residual stream.
#pragma once

#include <torch/torch.h>

#include <functional>
#include <string>
#include <vector>

#include "lm/model/config.h"
#include "lm/model/model.h"
#include "lm/model/rope.h"

namespace moba::lm {

/// Makes the parameter of that dotted path below `root`, modules on the way included, so that named_parameters() speaks
/// Hugging Face's names. Memory is not filled.
torch::Tensor register_by_path(torch::nn::Module& root, const std::string& path, std::vector<std::int64_t> shape);

/// Queries, keys and values of one layer: q [T, H, D], k and v [T, HK, D], after QK-norm and RoPE.
struct AttentionInputs {
  torch::Tensor q, k, v;
};

struct ModelImpl::Layer {
  /// Registers its parameters under "model.layers.<index>." of `root`.
  Layer(torch::nn::Module& root, const ModelConfig& config, std::int64_t index);

  /// The attention of this layer given its inputs: out [T, H, D].
  using Attend = std::function<torch::Tensor(const AttentionInputs&)>;

  /// x [T, hidden] -> [T, hidden], in x's dtype.
  torch::Tensor forward(const torch::Tensor& x, const RopeTable& rope, const Attend& attend) const;
  AttentionInputs attention_inputs(const torch::Tensor& x, const RopeTable& rope) const;
  std::vector<torch::Tensor> parameters() const;

  std::int64_t heads, kv_heads;
  double epsilon;
  torch::Tensor input_norm;           // [hidden]
  torch::Tensor q_proj;               // [H * D, hidden]
  torch::Tensor k_proj, v_proj;       // [HK * D, hidden]
  torch::Tensor o_proj;               // [hidden, H * D]
  torch::Tensor q_norm, k_norm;       // [D]; undefined without QK-norm
  torch::Tensor post_attention_norm;  // [hidden]
  torch::Tensor gate_proj, up_proj;   // [intermediate, hidden]
  torch::Tensor down_proj;            // [hidden, intermediate]
};

}  // namespace moba::lm
