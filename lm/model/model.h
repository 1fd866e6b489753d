// The decoder: embedding, RMSNorm, RoPE, attention by plan, SwiGLU.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <torch/torch.h>

#include "lm/model/config.h"
#include "lm/model/plan.h"
#include "moba_torch/attention.h"

namespace moba::lm {

/// Packed tokens of one step. Positions restart at 0 in each sequence unless `positions` is given.
struct TokenBatch {
  torch::Tensor tokens;      // int64 [T]
  torch::Tensor cu_seqlens;  // int32 [S + 1], on the tokens' device
  std::int64_t max_seqlen = 0;
};

struct ForwardOptions {
  bool checkpoint_activations = false;      // recompute each layer in the backward pass
  std::optional<torch::Tensor> logit_rows;  // int64 [R]: only these rows reach the head
};

/// The keys and values of every layer, for one sequence. Copyable handles are not: one owner.
class DecodeState {
 public:
  DecodeState(const ModelConfig& config, const AttentionPlan& plan, std::int64_t capacity,
              torch::TensorOptions options);
  std::int64_t length() const;
  std::int64_t capacity() const;
  void truncate(std::int64_t length);
  std::vector<torch_ops::KvCache>& layers() { return layers_; }

 private:
  std::vector<torch_ops::KvCache> layers_;
};

class ModelImpl : public torch::nn::Module {
 public:
  explicit ModelImpl(const ModelConfig& config);

  /// Training and evaluation: logits float32 [T or R, vocab].
  torch::Tensor forward(const TokenBatch& batch, const AttentionPlan& plan, const ForwardOptions& options = {});

  /// Decoding: appends tokens int64 [n] (on the state's device) and returns the logits float32 [rows, vocab] of the
  /// last `rows` of them (0: none).
  torch::Tensor forward_cached(const torch::Tensor& tokens, const AttentionPlan& plan, DecodeState& state,
                               std::int64_t rows);

  /// normal(0, 0.02); output projections 0.02 / sqrt(2 * layers).
  void init_weights(std::uint64_t seed);

  const ModelConfig& config() const { return config_; }

  struct Layer;

 private:
  ModelConfig config_;
  torch::Tensor embedding_;   // [vocab, hidden]
  torch::Tensor final_norm_;  // [hidden]
  torch::Tensor head_;        // [vocab, hidden]; undefined when tied
  std::vector<std::shared_ptr<Layer>> layers_;
};
TORCH_MODULE(Model);

}  // namespace moba::lm
