#include "lm/config/train_config.h"

#include <fmt/core.h>

#include "lm/config/phases.h"
#include "lm/config/reader.h"
#include "lm/config/toml.h"
#include "lm/util/files.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

using nlohmann::json;

RunConfig parse_run(SectionReader reader) {
  RunConfig run;
  run.out = reader.text("out", "");
  run.seed = static_cast<std::uint64_t>(reader.integer("seed", 0, 0));
  run.device = reader.choice("device", run.device, {"auto", "cpu", "cuda"});
  run.dtype = reader.choice("dtype", run.dtype, {"bf16", "fp32"});
  run.data_threads = reader.integer("data_threads", run.data_threads, 0, 256);
  run.log_every = reader.integer("log_every", run.log_every, 1, kMaxSteps);
  run.checkpoint_every = reader.integer("checkpoint_every", run.checkpoint_every, 1, kMaxSteps);
  run.keep_checkpoints = reader.integer("keep_checkpoints", run.keep_checkpoints, 1, 1000);
  run.validate_every = reader.integer("validate_every", run.validate_every, 0, kMaxSteps);
  run.validate_tokens = reader.integer("validate_tokens", run.validate_tokens, 1);
  run.peak_tflops = reader.number("peak_tflops", run.peak_tflops, 0, 1e9);
  if (reader.has("resume_parts")) run.resume_parts = reader.text("resume_parts", std::nullopt);
  run.resume_parts_mb = reader.integer("resume_parts_mb", run.resume_parts_mb, 1, 1 << 20);
  reader.refuse_unknown_keys();
  return run;
}

RopeScaling parse_rope_scaling(SectionReader reader) {
  RopeScaling scaling;
  const std::string type = reader.choice("type", std::nullopt, {"none", "linear", "llama3"});
  scaling.type = type == "linear"   ? RopeScaling::Type::kLinear
                 : type == "llama3" ? RopeScaling::Type::kLlama3
                                    : RopeScaling::Type::kNone;
  scaling.factor = reader.number("factor", scaling.factor, 1, 1e6);
  scaling.low_freq_factor = reader.number("low_freq_factor", scaling.low_freq_factor, 1e-6, 1e6);
  scaling.high_freq_factor = reader.number("high_freq_factor", scaling.high_freq_factor, 1e-6, 1e6);
  scaling.original_max_position_embeddings = reader.integer("original_max_position_embeddings", 0, 0);
  reader.refuse_unknown_keys();
  return scaling;
}

// The keys of a fresh model. The rules that tie them together (heads and KV heads, …) are parse_model_config's.
ModelConfig parse_model_shape(SectionReader& reader) {
  ModelConfig model;
  model.model_type = reader.choice("model_type", model.model_type, {"llama", "qwen3"});
  model.vocab_size = reader.integer("vocab_size", model.vocab_size, 1, 1 << 24);
  model.hidden_size = reader.integer("hidden_size", model.hidden_size, 1, 1 << 20);
  model.intermediate_size = reader.integer("intermediate_size", model.intermediate_size, 1, 1 << 22);
  model.num_hidden_layers = reader.integer("num_hidden_layers", model.num_hidden_layers, 1, 4096);
  model.num_attention_heads = reader.integer("num_attention_heads", model.num_attention_heads, 1, 4096);
  model.num_key_value_heads = reader.integer("num_key_value_heads", model.num_attention_heads, 1, 4096);
  if (!reader.has("head_dim") && model.hidden_size % model.num_attention_heads != 0)
    reader.fail("num_attention_heads",
                fmt::format("must divide hidden_size = {}, or head_dim be given", model.hidden_size));
  model.head_dim = reader.integer("head_dim", model.hidden_size / model.num_attention_heads, 1, 4096);
  model.rms_norm_eps = reader.number("rms_norm_eps", model.rms_norm_eps, 1e-12, 1);
  model.rope_theta = reader.number("rope_theta", model.rope_theta, 1, 1e12);
  if (reader.has("rope_scaling")) {
    model.rope_scaling =
        parse_rope_scaling({reader.raw("rope_scaling"), reader.source(), reader.full_name("rope_scaling")});
  }
  model.tie_word_embeddings = reader.boolean("tie_word_embeddings", model.tie_word_embeddings);
  model.qk_norm = reader.boolean("qk_norm", model.model_type == "qwen3");
  return model;
}

ModelSource parse_model(SectionReader reader, const std::string& tokenizer) {
  ModelSource source;
  source.has_max_position_embeddings = reader.has("max_position_embeddings");
  if (reader.has("init_from")) {
    source.init_from = reader.text("init_from", std::nullopt);
    const std::filesystem::path file = *source.init_from / "config.json";
    const json parsed = json::parse(read_file(file), nullptr, false);
    if (parsed.is_discarded()) reader.fail("init_from", fmt::format("{} is not JSON", file.string()));
    source.config = parse_model_config(parsed, file.string());
  } else {
    source.config = parse_model_shape(reader);
  }
  ModelConfig& model = source.config;
  model.max_position_embeddings =
      reader.integer("max_position_embeddings", model.max_position_embeddings, 1, std::int64_t{1} << 32);
  if (reader.has("final_rope_theta"))
    source.final_rope_theta = reader.number("final_rope_theta", std::nullopt, 1, 1e12);
  reader.refuse_unknown_keys();  // beside init_from, every key of the shape is unknown
  model.tokenizer = tokenizer == "bytes" ? "bytes" : "sentencepiece";
  if (tokenizer == "bytes" && model.vocab_size != 256) reader.fail("vocab_size", "must be 256 for the bytes tokenizer");
  model.plan = {};
  model = parse_model_config(to_json(model), reader.source() + " [model]");
  return source;
}

DataConfig parse_data(SectionReader reader) {
  DataConfig data;
  for (const std::string& path : reader.texts("train")) data.train.emplace_back(path);
  for (const std::string& path : reader.texts("valid")) data.valid.emplace_back(path);
  if (data.train.empty()) reader.fail("train", "must name at least one file or folder of text");
  data.tokenizer = reader.text("tokenizer", data.tokenizer);
  if (data.tokenizer.empty()) reader.fail("tokenizer", "must be \"bytes\" or the path of a tokenizer.model");
  data.cache_dir = reader.text("cache_dir", std::nullopt);
  if (data.cache_dir.empty()) reader.fail("cache_dir", "must name a folder for token shards");
  reader.refuse_unknown_keys();
  return data;
}

RecallConfig parse_recall(SectionReader reader, const std::string& tokenizer) {
  RecallConfig recall;
  recall.fraction = reader.number("fraction", recall.fraction, 0, 1);
  recall.shorter_share = reader.number("shorter_share", recall.shorter_share, 0, 1);
  recall.answer_weight = reader.number("answer_weight", recall.answer_weight, 0, 1000);
  recall.repeat_probability = reader.number("repeat_probability", recall.repeat_probability, 0, 1);
  recall.end_share = reader.number("end_share", recall.end_share, 0, 1);
  recall.density = reader.number("density", recall.density, 0.01, 10);
  recall.digits = reader.number("digits", recall.digits, 0, 1000);
  recall.made_up_words = reader.number("made_up_words", recall.made_up_words, 0, 1000);
  recall.dictionary_words = reader.number("dictionary_words", recall.dictionary_words, 0, 1000);
  recall.names = reader.number("names", recall.names, 0, 1000);
  recall.codes = reader.number("codes", recall.codes, 0, 1000);
  if (recall.digits + recall.made_up_words + recall.dictionary_words + recall.names + recall.codes <= 0)
    reader.fail("digits", "at least one kind of value needs a weight above 0");
  if (recall.fraction > 0 && tokenizer != "bytes")
    reader.fail("fraction", "facts are written as bytes: set it to 0 or data.tokenizer to \"bytes\"");
  reader.refuse_unknown_keys();
  return recall;
}

OptimizerConfig parse_optimizer(SectionReader reader) {
  OptimizerConfig optimizer;
  optimizer.lr = reader.number("lr", optimizer.lr, 0, 10);
  optimizer.beta1 = reader.number("beta1", optimizer.beta1, 0, 0.999999);
  optimizer.beta2 = reader.number("beta2", optimizer.beta2, 0, 0.999999);
  optimizer.eps = reader.number("eps", optimizer.eps, 1e-16, 1);
  optimizer.weight_decay = reader.number("weight_decay", optimizer.weight_decay, 0, 10);
  optimizer.clip = reader.number("clip", optimizer.clip, 0, 1e6);
  reader.refuse_unknown_keys();
  return optimizer;
}

}  // namespace

TrainConfig parse_train_config(const json& root, const std::string& source) {
  SectionReader reader(root, source, "");
  TrainConfig config;
  config.source = root;
  config.run = parse_run({reader.raw("run"), source, "run"});
  config.data = parse_data({reader.raw("data"), source, "data"});
  config.model = parse_model({reader.raw("model"), source, "model"}, config.data.tokenizer);
  config.recall = parse_recall({reader.raw("recall"), source, "recall"}, config.data.tokenizer);
  config.optimizer = parse_optimizer({reader.raw("optimizer"), source, "optimizer"});
  const PhaseRules rules{config.model.config, config.recall.fraction > 0};
  parse_phases(reader.raw("schedule"), reader.raw("phase"), source, rules, config.schedule, config.phases);
  reader.refuse_unknown_keys();
  return config;
}

TrainConfig load_train_config(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  json root = read_toml(file);
  for (const std::string& text : overrides) apply_override(root, text);
  return parse_train_config(root, file.string());
}

json schedule_to_json(const TrainConfig& config) {
  json phases = json::array();
  for (const PhaseConfig& phase : config.phases) {
    phases.push_back({{"step", phase.step},
                      {"sequence_length", phase.sequence_length},
                      {"batch_tokens", phase.batch_tokens},
                      {"lr_scale", phase.lr_scale},
                      {"plan", to_json(phase.plan)}});
  }
  return {{"steps", config.schedule.steps}, {"phases", phases}};
}

}  // namespace moba::lm
