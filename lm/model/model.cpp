#include "lm/model/model.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <string>

#include "lm/model/layer.h"
#include "lm/model/ops.h"
#include "lm/model/rope.h"
#include "moba/error.h"

namespace moba::lm {

using torch::Tensor;

namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, message);
}

void check_plan(const AttentionPlan& plan, const ModelConfig& config) {
  if (!plan.empty() && static_cast<std::int64_t>(plan.layers.size()) != config.num_hidden_layers) {
    refuse(fmt::format("plan has {} layers, the model has {}: give one entry a layer, or an empty plan",
                       plan.layers.size(), config.num_hidden_layers));
  }
}

/// Pages that are never written cost nothing, so an absurd model would come up and die only when it is filled.
void check_memory(const ModelConfig& config) {
  const double bytes = 4.0 * static_cast<double>(config.parameter_count());
  const double memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  if (bytes > memory) {
    refuse(
        fmt::format("a model of {} parameters (hidden_size={}, num_hidden_layers={}, vocab_size={}) needs {:.1f} GB; "
                    "this machine has {:.1f} GB",
                    config.parameter_count(), config.hidden_size, config.num_hidden_layers, config.vocab_size,
                    bytes / 1e9, memory / 1e9));
  }
}

}  // namespace

DecodeState::DecodeState(const ModelConfig& config, const AttentionPlan& plan, std::int64_t capacity,
                         torch::TensorOptions options) {
  check_plan(plan, config);
  if (capacity < 1) refuse(fmt::format("capacity={} must be at least 1 token", capacity));
  layers_.reserve(static_cast<std::size_t>(config.num_hidden_layers));
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    layers_.emplace_back(capacity, config.num_key_value_heads, config.head_dim, config.head_dim, plan.layer(i),
                         options);
  }
}

std::int64_t DecodeState::length() const {
  return layers_.front().length();
}

std::int64_t DecodeState::capacity() const {
  return layers_.front().capacity();
}

void DecodeState::truncate(std::int64_t length) {
  for (torch_ops::KvCache& layer : layers_) layer.truncate(length);
}

ModelImpl::ModelImpl(const ModelConfig& config) : torch::nn::Module("Model"), config_(config) {
  check_memory(config_);
  check_plan(config_.plan, config_);
  frequencies_ = rope_frequencies(config_);
  embedding_ = register_by_path(*this, "model.embed_tokens.weight", {config_.vocab_size, config_.hidden_size});
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    layers_.push_back(std::make_shared<Layer>(*this, config_, i));
  }
  final_norm_ = register_by_path(*this, "model.norm.weight", {config_.hidden_size});
  if (!config_.tie_word_embeddings) {
    head_ = register_by_path(*this, "lm_head.weight", {config_.vocab_size, config_.hidden_size});
  }
}

torch::Dtype ModelImpl::compute_dtype() const {
  return compute_dtype_.value_or(embedding_.scalar_type());
}

void ModelImpl::check_tokens(const Tensor& tokens, const AttentionPlan& plan) const {
  check_plan(plan, config_);
  if (tokens.dim() != 1 || tokens.scalar_type() != torch::kInt64 || tokens.device() != embedding_.device()) {
    refuse(fmt::format("tokens: {}-dimensional {} on {}; needed: int64 [T] on the model's device, {}", tokens.dim(),
                       c10::toString(tokens.scalar_type()), tokens.device().str(), embedding_.device().str()));
  }
  // On CUDA the values stay unread (that would wait for the device); the tokenizers give nothing out of range.
  if (tokens.is_cpu() && tokens.numel() > 0) {
    const auto [low, high] = tokens.aminmax();
    for (const Tensor& bound : {low, high}) {
      const std::int64_t token = bound.item<std::int64_t>();
      if (token < 0 || token >= config_.vocab_size) {
        refuse(fmt::format("tokens: id {} is outside the vocabulary, 0 to {}", token, config_.vocab_size - 1));
      }
    }
  }
}

void ModelImpl::check_batch(const TokenBatch& batch, const AttentionPlan& plan) const {
  check_tokens(batch.tokens, plan);
  const Tensor& offsets = batch.cu_seqlens;
  const bool integers =
      offsets.defined() && (offsets.scalar_type() == torch::kInt32 || offsets.scalar_type() == torch::kInt64);
  if (!integers || offsets.dim() != 1 || offsets.numel() < 1 || offsets.device() != batch.tokens.device()) {
    refuse("cu_seqlens: needed: int32 [sequences + 1] on the tokens' device, from 0 to the number of tokens");
  }
}

Tensor ModelImpl::embed(const Tensor& tokens) const {
  return at::embedding(embedding_.to(compute_dtype()), tokens);  // [T, hidden]
}

RopeTable ModelImpl::rope_at(const Tensor& positions) {
  if (frequencies_.device() != positions.device()) frequencies_ = frequencies_.to(positions.device());
  return rope_table(positions, frequencies_);
}

Tensor ModelImpl::head(const Tensor& x) const {
  const Tensor logits = project(rms_norm(x, final_norm_, config_.rms_norm_eps), {head_.defined() ? head_ : embedding_});
  return at::isReducedFloatingType(logits.scalar_type()) ? logits.to(torch::kFloat32) : logits;
}

Tensor ModelImpl::run_layer(std::size_t index, const Tensor& x, const RopeTable& rope, const TokenBatch& batch,
                            const AttentionPlan& plan, bool recompute, const std::optional<Tensor>& out_rows) const {
  const Layer& layer = *layers_[index];
  const auto sequences = torch_ops::SequenceBatch::self(batch.cu_seqlens, batch.max_seqlen);
  const AttentionOptions options = plan.layer(static_cast<std::int64_t>(index));
  const auto body = [&layer, rope, sequences, options, out_rows](const Tensor& in) {
    const AttentionInputs inputs = layer.attention_inputs(in, rope, in.size(0));
    const Tensor attended = std::get<0>(torch_ops::attention(inputs.q, inputs.k, inputs.v, sequences, options));
    if (!out_rows) return layer.add_attended(in, attended);
    return layer.add_attended(in.index_select(0, *out_rows), attended.index_select(0, *out_rows));
  };
  return recompute ? recompute_in_backward(body, x, layer.parameters()) : body(x);
}

Tensor ModelImpl::forward(const TokenBatch& batch, const AttentionPlan& plan, const ForwardOptions& options) {
  check_batch(batch, plan);
  const RopeTable rope = rope_at(packed_positions(batch.cu_seqlens, batch.tokens.size(0)));
  const bool recompute = options.checkpoint_activations && torch::GradMode::is_enabled();
  Tensor x = embed(batch.tokens);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const bool is_last = i + 1 == layers_.size();
    x = run_layer(i, x, rope, batch, plan, recompute, is_last ? options.logit_rows : std::nullopt);
  }
  return head(x);
}

AttentionInputs ModelImpl::attention_inputs(const TokenBatch& batch, const AttentionPlan& plan, std::int64_t layer) {
  check_batch(batch, plan);
  if (layer < 0 || layer >= config_.num_hidden_layers) {
    refuse(fmt::format("layer={} must be from 0 to {}", layer, config_.num_hidden_layers - 1));
  }
  const torch::NoGradGuard no_gradients;
  const RopeTable rope = rope_at(packed_positions(batch.cu_seqlens, batch.tokens.size(0)));
  Tensor x = embed(batch.tokens);
  for (std::size_t i = 0; i < static_cast<std::size_t>(layer); ++i) x = run_layer(i, x, rope, batch, plan, false);
  return layers_[static_cast<std::size_t>(layer)]->attention_inputs(x, rope, x.size(0));
}

Tensor ModelImpl::forward_cached(const Tensor& tokens, const AttentionPlan& plan, DecodeState& state,
                                 std::int64_t rows) {
  check_tokens(tokens, plan);
  const std::int64_t count = tokens.size(0), start = state.length();
  if (static_cast<std::int64_t>(state.layers().size()) != config_.num_hidden_layers) {
    refuse(fmt::format("state has {} layers, the model has {}", state.layers().size(), config_.num_hidden_layers));
  }
  if (rows < 0 || rows > count) refuse(fmt::format("rows={} must be from 0 to the {} tokens given", rows, count));
  if (start + count > state.capacity()) {
    refuse(fmt::format("{} tokens after the {} held exceed the state's capacity of {}; make a larger DecodeState",
                       count, start, state.capacity()));
  }
  const torch::NoGradGuard no_gradients;
  const RopeTable rope = rope_at(torch::arange(start, start + count, tokens.options().dtype(torch::kInt32)));
  Tensor x = embed(tokens);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const bool is_last = i + 1 == layers_.size();
    const std::int64_t out_rows = is_last ? rows : count;
    torch_ops::KvCache& cache = state.layers()[i];
    const AttentionInputs inputs = layers_[i]->attention_inputs(x, rope, out_rows);
    cache.append(inputs.k, inputs.v);
    if (out_rows == 0) return Tensor();
    const Tensor attended = std::get<0>(cache.attend(inputs.q, plan.layer(static_cast<std::int64_t>(i))));
    x = layers_[i]->add_attended(x.narrow(0, count - out_rows, out_rows), attended);
  }
  return head(x);
}

void ModelImpl::init_weights(std::uint64_t seed) {
  constexpr double kDeviation = 0.02;
  // Each block adds two outputs to the residual stream; this keeps its variance from growing with depth (GPT-2).
  const double output_deviation = kDeviation / std::sqrt(2.0 * static_cast<double>(config_.num_hidden_layers));
  const torch::NoGradGuard no_gradients;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  for (auto& item : named_parameters()) {
    const std::string& name = item.key();
    Tensor& parameter = item.value();
    if (parameter.dim() == 1) {
      parameter.fill_(1.0);
      continue;
    }
    const bool is_output = name.find("o_proj") != std::string::npos || name.find("down_proj") != std::string::npos;
    Tensor values = torch::empty(parameter.sizes(), torch::kFloat32);  // on the CPU: the same bits for every device
    values.normal_(0.0, is_output ? output_deviation : kDeviation, generator);
    parameter.copy_(values);
  }
}

}  // namespace moba::lm
