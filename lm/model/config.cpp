#include "lm/model/config.h"

#include <fmt/format.h>

#include <algorithm>

#include "lm/util/json_object.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

using nlohmann::json;

// Bounds that no real model comes near. Below them the parameter count cannot overflow 64 bits
// (layers * hidden * (3 * intermediate + 4 * heads * head_dim) < 2^12 * 2^20 * 2^27 = 2^59).
constexpr std::int64_t kMaxVocab = std::int64_t{1} << 26;
constexpr std::int64_t kMaxHidden = std::int64_t{1} << 20;
constexpr std::int64_t kMaxIntermediate = std::int64_t{1} << 24;
constexpr std::int64_t kMaxLayers = std::int64_t{1} << 12;
constexpr std::int64_t kMaxHeads = std::int64_t{1} << 14;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 40;
constexpr std::int64_t kMinHeadDim = 8;  // what the attention operators take
constexpr std::int64_t kMaxHeadDim = 256;
// A trillion parameters: 4 TB in float32. More is a typing error, and is refused before anything is allocated.
constexpr std::int64_t kMaxParameters = 1'000'000'000'000;

constexpr double kDefaultTheta = 10000.0;  // transformers' default for both model types

/// Absent, it is hidden_size / num_attention_heads, but 128 in Qwen3 (the defaults of transformers).
std::int64_t parse_head_dim(const JsonObject& root, const ModelConfig& config) {
  std::int64_t head_dim = 128;
  if (root.has("head_dim")) {
    head_dim = root.integer("head_dim", kMinHeadDim, kMaxHeadDim);
  } else if (!config.qk_norm) {
    if (config.hidden_size % config.num_attention_heads != 0) {
      root.fail("hidden_size", fmt::format("must be a multiple of num_attention_heads={} where head_dim is absent",
                                           config.num_attention_heads));
    }
    head_dim = config.hidden_size / config.num_attention_heads;
  }
  if (head_dim < kMinHeadDim || head_dim > kMaxHeadDim || head_dim % 2 != 0) {
    root.fail("head_dim",
              fmt::format("(that is {}) must be even and from {} to {}", head_dim, kMinHeadDim, kMaxHeadDim));
  }
  return head_dim;
}

RopeScaling parse_scaling(const JsonObject& rope, std::int64_t max_position_embeddings) {
  RopeScaling scaling;
  const std::string type = rope.string_or("rope_type", rope.string_or("type", "default"));
  if (rope.number_or("partial_rotary_factor", 1.0, 0.0, 1.0) != 1.0) {
    rope.fail("partial_rotary_factor", "is not supported; RoPE turns the whole head (1.0)");
  }
  if (type == "default") return scaling;
  if (type == "linear") {
    scaling.type = RopeScaling::Type::kLinear;
    scaling.factor = rope.number("factor", 1.0, 1e6);
    return scaling;
  }
  if (type == "llama3") {
    scaling.type = RopeScaling::Type::kLlama3;
    scaling.factor = rope.number("factor", 1.0, 1e6);
    scaling.low_freq_factor = rope.number("low_freq_factor", 1e-6, 1e6);
    scaling.high_freq_factor = rope.number("high_freq_factor", 1e-6, 1e6);
    scaling.original_max_position_embeddings =
        rope.integer_or("original_max_position_embeddings", max_position_embeddings, 1, kMaxPositions);
    if (scaling.high_freq_factor <= scaling.low_freq_factor) {
      rope.fail("high_freq_factor", fmt::format("must be above low_freq_factor={}", scaling.low_freq_factor));
    }
    return scaling;
  }
  rope.fail(rope.has("rope_type") ? "rope_type" : "type",
            "is not a supported rule; supported: default, linear, llama3");
}

/// Reads the theta and the scaling from wherever this transformers generation put them: `rope_parameters` (5.x), or
/// `rope_theta` and `rope_scaling` (before). Where both stand, transformers 5 lets `rope_scaling` win, and so do we.
void parse_rope(const JsonObject& root, ModelConfig& config) {
  config.rope_theta = root.number_or("rope_theta", kDefaultTheta, 1.0, 1e12);
  config.rope_scaling = {};
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!root.has(key)) continue;
    const JsonObject rope = root.object(key);
    config.rope_theta = rope.number_or("rope_theta", config.rope_theta, 1.0, 1e12);
    config.rope_scaling = parse_scaling(rope, config.max_position_embeddings);
  }
}

/// Keys that would change the mathematics in a way this decoder does not do: named, never ignored.
void refuse_unsupported(const JsonObject& root) {
  for (const char* key : {"attention_bias", "mlp_bias", "use_sliding_window"}) {
    if (root.boolean_or(key, false)) root.fail(key, "is not supported; it must be false");
  }
  const std::string activation = root.string_or("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") root.fail("hidden_act", "is not supported; supported: silu");
  if (root.has("quantization_config")) {
    root.fail("quantization_config", "is not supported; give the unquantised checkpoint");
  }
  if (root.has("layer_types")) {
    const json& types = root.at("layer_types");
    const bool plain = types.is_array() && std::all_of(types.begin(), types.end(),
                                                       [](const json& type) { return type == "full_attention"; });
    if (!plain) root.fail("layer_types", "must be a list of \"full_attention\"; sparse layers go under the key moba");
  }
}

void parse_ours(const JsonObject& root, ModelConfig& config) {
  // A byte vocabulary has exactly 256 entries, and no SentencePiece model is that small in practice.
  config.tokenizer = config.vocab_size == 256 ? "bytes" : "sentencepiece";
  config.plan = {};
  if (!root.has("moba")) return;
  const JsonObject ours = root.object("moba");
  ours.only({"tokenizer", "plan", "schedule"});  // the schedule says how the model was trained; nothing here needs it
  config.tokenizer = ours.string_or("tokenizer", config.tokenizer);
  if (config.tokenizer != "bytes" && config.tokenizer != "sentencepiece") {
    ours.fail("tokenizer", "is unknown; known: bytes, sentencepiece");
  }
  if (config.tokenizer == "bytes" && config.vocab_size != 256) {
    root.fail("vocab_size", "must be 256 with the byte tokenizer that the key moba asks for");
  }
  if (ours.has("plan")) {
    config.plan = parse_plan(ours.at("plan"), config.num_hidden_layers, ours.where() + ": plan");
  }
}

json rope_to_json(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  json rope = {{"rope_theta", config.rope_theta}};
  switch (scaling.type) {
    case RopeScaling::Type::kNone: rope["rope_type"] = "default"; break;
    case RopeScaling::Type::kLinear:
      rope["rope_type"] = "linear";
      rope["factor"] = scaling.factor;
      break;
    case RopeScaling::Type::kLlama3:
      rope["rope_type"] = "llama3";
      rope["factor"] = scaling.factor;
      rope["low_freq_factor"] = scaling.low_freq_factor;
      rope["high_freq_factor"] = scaling.high_freq_factor;
      rope["original_max_position_embeddings"] = scaling.original_max_position_embeddings;
      break;
  }
  return rope;
}

}  // namespace

std::int64_t ModelConfig::parameter_count() const {
  const std::int64_t q_width = num_attention_heads * head_dim;
  const std::int64_t kv_width = num_key_value_heads * head_dim;
  const std::int64_t attention = hidden_size * (2 * q_width + 2 * kv_width) + (qk_norm ? 2 * head_dim : 0);
  const std::int64_t mlp = 3 * hidden_size * intermediate_size;
  const std::int64_t embeddings = (tie_word_embeddings ? 1 : 2) * vocab_size * hidden_size;
  return embeddings + num_hidden_layers * (attention + mlp + 2 * hidden_size) + hidden_size;
}

ModelConfig parse_model_config(const json& source_json, const std::string& source) {
  const JsonObject root(source_json, source);
  ModelConfig config;
  config.model_type = root.string_or("model_type", "");
  if (config.model_type != "llama" && config.model_type != "qwen3") {
    root.fail("model_type", "is not supported; supported: llama, qwen3");
  }
  config.qk_norm = config.model_type == "qwen3";
  refuse_unsupported(root);

  config.vocab_size = root.integer("vocab_size", 1, kMaxVocab);
  config.hidden_size = root.integer("hidden_size", 1, kMaxHidden);
  config.intermediate_size = root.integer("intermediate_size", 1, kMaxIntermediate);
  config.num_hidden_layers = root.integer("num_hidden_layers", 1, kMaxLayers);
  config.num_attention_heads = root.integer("num_attention_heads", 1, kMaxHeads);
  config.num_key_value_heads =
      root.integer_or("num_key_value_heads", config.num_attention_heads, 1, config.num_attention_heads);
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    root.fail("num_key_value_heads", fmt::format("must divide num_attention_heads={}", config.num_attention_heads));
  }
  config.head_dim = parse_head_dim(root, config);
  config.max_position_embeddings = root.integer_or("max_position_embeddings", 2048, 1, kMaxPositions);
  config.rms_norm_eps = root.number_or("rms_norm_eps", 1e-6, 0.0, 1.0);
  config.tie_word_embeddings = root.boolean_or("tie_word_embeddings", false);
  parse_rope(root, config);
  parse_ours(root, config);

  if (config.parameter_count() > kMaxParameters) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: hidden_size={}, num_hidden_layers={}, intermediate_size={}, vocab_size={} make {} "
                            "parameters; at most {} are accepted",
                            source, config.hidden_size, config.num_hidden_layers, config.intermediate_size,
                            config.vocab_size, config.parameter_count(), kMaxParameters));
  }
  return config;
}

json to_json(const ModelConfig& config) {
  const json rope = rope_to_json(config);
  json out = {
      {"architectures", {config.qk_norm ? "Qwen3ForCausalLM" : "LlamaForCausalLM"}},
      {"model_type", config.qk_norm ? "qwen3" : "llama"},
      {"vocab_size", config.vocab_size},
      {"hidden_size", config.hidden_size},
      {"intermediate_size", config.intermediate_size},
      {"num_hidden_layers", config.num_hidden_layers},
      {"num_attention_heads", config.num_attention_heads},
      {"num_key_value_heads", config.num_key_value_heads},
      {"head_dim", config.head_dim},
      {"hidden_act", "silu"},
      {"max_position_embeddings", config.max_position_embeddings},
      {"rms_norm_eps", config.rms_norm_eps},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"attention_bias", false},
      {"mlp_bias", false},
      {"bos_token_id", nullptr},
      {"eos_token_id", nullptr},
      // Both spellings: rope_parameters for transformers 5, the two others for what came before.
      {"rope_parameters", rope},
      {"rope_theta", config.rope_theta},
      {"rope_scaling", config.rope_scaling.type == RopeScaling::Type::kNone ? json(nullptr) : rope},
  };
  json ours = {{"tokenizer", config.tokenizer}};
  if (!config.plan.empty()) ours["plan"] = to_json(config.plan);
  out["moba"] = ours;
  return out;
}

}  // namespace moba::lm
