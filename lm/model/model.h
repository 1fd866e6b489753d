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

/// Packed tokens of one step. Positions restart at 0 in each sequence.
struct TokenBatch {
  torch::Tensor tokens;      // int64 [T]
  torch::Tensor cu_seqlens;  // int32 [S + 1], on the tokens' device
  std::int64_t max_seqlen = 0;
};

struct ForwardOptions {
  bool checkpoint_activations = false;      // recompute each layer in the backward pass
  std::optional<torch::Tensor> logit_rows;  // int64 [R], any order: only their logits; the last layer's attention is of
                                            // all rows, what follows it of these
};

struct AttentionInputs;  // lm/model/layer.h
struct RopeTable;        // lm/model/rope.h

/// The keys and values of every layer, for one sequence. Copyable handles are not: one owner.
class DecodeState {
 public:
  /// Room for `capacity` tokens; `options` give device and dtype (the model's compute dtype). Error when the plan does
  /// not fit the config.
  DecodeState(const ModelConfig& config, const AttentionPlan& plan, std::int64_t capacity,
              torch::TensorOptions options);
  DecodeState(const DecodeState&) = delete;
  DecodeState& operator=(const DecodeState&) = delete;
  DecodeState(DecodeState&&) = default;
  DecodeState& operator=(DecodeState&&) = default;

  std::int64_t length() const;
  std::int64_t capacity() const;
  /// Forgets the tokens from `length` on.
  void truncate(std::int64_t length);
  std::vector<torch_ops::KvCache>& layers() { return layers_; }

 private:
  std::vector<torch_ops::KvCache> layers_;
};

/// A Llama-family decoder. Parameters bear Hugging Face's names ("model.layers.0.self_attn.q_proj.weight", …).
///
/// Mixed precision: weights keep their dtype (float32 masters in training); every forward casts each of them once to
/// the compute dtype, differentiably, so that gradients arrive in the weights' dtype. Activations **and the residual
/// stream** are in the compute dtype: a model is then trained in the arithmetic in which it will be run from 16-bit
/// weights, and a step moves half the bytes of a float32 stream. RMSNorm, RoPE and the loss' logits are float32 inside.
class ModelImpl : public torch::nn::Module {
 public:
  /// Parameters are made on the CPU in float32 and not filled: load them or call init_weights. Error when they would
  /// not fit into the machine's memory.
  explicit ModelImpl(const ModelConfig& config);

  /// Training and evaluation: logits float32 [T or R, vocab] (float64 for a float64 model).
  torch::Tensor forward(const TokenBatch& batch, const AttentionPlan& plan, const ForwardOptions& options = {});

  /// Reading and decoding: appends tokens int64 [n] (on the state's device) and returns the logits float32
  /// [rows, vocab] of the last `rows` of them (0: none, an undefined tensor). Of the other rows the last layer computes
  /// keys and values only: nothing else of theirs is read again. Records no gradients.
  torch::Tensor forward_cached(const torch::Tensor& tokens, const AttentionPlan& plan, DecodeState& state,
                               std::int64_t rows);

  /// q, k, v that layer `layer` hands to its attention (after QK-norm and RoPE), the layers before it run by `plan`.
  /// For checking an attention method on a model's own tensors; include "lm/model/layer.h" for the type.
  AttentionInputs attention_inputs(const TokenBatch& batch, const AttentionPlan& plan, std::int64_t layer);

  /// normal(0, 0.02); output projections 0.02 / sqrt(2 * layers); norms 1. The same bits on every device.
  void init_weights(std::uint64_t seed);

  /// The dtype of matrix products and activations; until called, that of the weights.
  void set_compute_dtype(torch::Dtype dtype) { compute_dtype_ = dtype; }
  torch::Dtype compute_dtype() const;

  const ModelConfig& config() const { return config_; }

  struct Layer;

 private:
  void check_batch(const TokenBatch& batch, const AttentionPlan& plan) const;
  void check_tokens(const torch::Tensor& tokens, const AttentionPlan& plan) const;
  torch::Tensor embed(const torch::Tensor& tokens) const;
  /// x [T, hidden] -> [T, hidden], or only `out_rows` of it.
  torch::Tensor run_layer(std::size_t index, const torch::Tensor& x, const RopeTable& rope, const TokenBatch& batch,
                          const AttentionPlan& plan, bool recompute,
                          const std::optional<torch::Tensor>& out_rows = std::nullopt) const;
  /// Rows x [R, hidden] -> logits [R, vocab].
  torch::Tensor head(const torch::Tensor& x) const;
  RopeTable rope_at(const torch::Tensor& positions);

  ModelConfig config_;
  std::optional<torch::Dtype> compute_dtype_;
  torch::Tensor frequencies_;  // float32 [D/2] on the device of the last forward; no buffer, so that no cast reaches it
  torch::Tensor embedding_;    // [vocab, hidden]
  torch::Tensor final_norm_;   // [hidden]
  torch::Tensor head_;         // [vocab, hidden]; undefined when tied
  std::vector<std::shared_ptr<Layer>> layers_;
};
TORCH_MODULE(Model);

}  // namespace moba::lm
