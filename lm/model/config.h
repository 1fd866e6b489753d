// The shape of a Llama-family decoder, as Hugging Face's config.json states it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "lm/model/plan.h"

namespace moba::lm {

/// rope_scaling of config.json: none, "linear" (position interpolation) or "llama3".
struct RopeScaling {
  enum class Type { kNone, kLinear, kLlama3 } type = Type::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;                       // llama3
  double high_freq_factor = 4.0;                      // llama3
  std::int64_t original_max_position_embeddings = 0;  // llama3
};

struct ModelConfig {
  std::string model_type = "llama";  // "llama" or "qwen3" (QK-norm)
  std::int64_t vocab_size = 256;
  std::int64_t hidden_size = 256;
  std::int64_t intermediate_size = 688;
  std::int64_t num_hidden_layers = 8;
  std::int64_t num_attention_heads = 4;
  std::int64_t num_key_value_heads = 4;
  std::int64_t head_dim = 64;
  std::int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-5;
  double rope_theta = 1e6;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = true;
  bool qk_norm = false;
  std::string tokenizer = "bytes";  // ours, under "moba": "bytes" or "sentencepiece"
  AttentionPlan plan;               // ours, under "moba"; empty = a plain checkpoint, every layer full

  std::int64_t parameter_count() const;
};

/// Parses and checks; Error names the key, its value, the rule. `source` (the file's name) goes into the message.
ModelConfig parse_model_config(const nlohmann::json& json, const std::string& source);
/// What transformers reads, plus ours under "moba".
nlohmann::json to_json(const ModelConfig& config);

}  // namespace moba::lm
