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

/// Queries, keys and values of one layer, after QK-norm and RoPE: k and v [T, HK, D] of all rows, q [R, H, D] of the
/// last R of them.
struct AttentionInputs {
  torch::Tensor q, k, v;
};

struct ModelImpl::Layer {
  /// Registers its parameters under "model.layers.<index>." of `root`.
  Layer(torch::nn::Module& root, const ModelConfig& config, std::int64_t index);

  /// x [T, hidden] and the rows' angles -> keys and values of all rows, queries of the last `rows` of them.
  AttentionInputs attention_inputs(const torch::Tensor& x, const RopeTable& rope, std::int64_t rows) const;
  /// The layer's output [R, hidden], in x's dtype, of rows x [R, hidden] and their attention [R, H, D].
  torch::Tensor add_attended(const torch::Tensor& x, const torch::Tensor& attended) const;
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

 private:
  /// Normed rows [R, hidden] -> their query heads, and their key/value heads, or one of both; what is left out has no
  /// heads, [R, 0, D].
  AttentionInputs project_heads(const torch::Tensor& normed, const RopeTable& rope, bool queries, bool keys) const;
};

}  // namespace moba::lm
