// Everything a training run is told, as typed structs. One TOML file fills them; docs/training.md lists the keys.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "lm/model/config.h"
#include "lm/model/plan.h"

namespace moba::lm {

/// [run]: where, on what, how often.
struct RunConfig {
  std::filesystem::path out;
  std::uint64_t seed = 0;
  std::string device = "auto";          // auto | cpu | cuda
  std::string dtype = "bf16";           // bf16 | fp32: what matrices are multiplied in; weights are always fp32
  std::int64_t data_threads = 0;        // 0: chosen from the number of cores
  std::int64_t log_every = 10;          // steps a line
  std::int64_t checkpoint_every = 500;  // steps
  std::int64_t keep_checkpoints = 2;
  std::int64_t validate_every = 0;                    // steps; 0: never
  std::int64_t validate_tokens = 1 << 19;             // predicted tokens a validation, rounded up to whole sequences
  double peak_tflops = 0;                             // for MFU; 0: known by the GPU's name, else MFU is left out
  std::optional<std::filesystem::path> resume_parts;  // folder of compact resume files
  std::int64_t resume_parts_mb = 16;                  // MiB a file at most
};

/// [model]: a shape, or a checkpoint to go on from.
struct ModelSource {
  ModelConfig config;                              // ignored but for max_position_embeddings with init_from
  std::optional<std::filesystem::path> init_from;  // a Hugging Face directory
  bool has_max_position_embeddings = false;        // given in the file, so it overrides the checkpoint's
  std::optional<double> final_rope_theta;          // of the finished model, in place of the one it was trained with
};

/// [data]
struct DataConfig {
  std::vector<std::filesystem::path> train, valid;  // files, or folders searched for *.txt
  std::string tokenizer = "bytes";                  // "bytes", or the path of a SentencePiece tokenizer.model
  std::filesystem::path cache_dir;
};

/// [recall]: facts woven into text, asked again later (lm/data/recall.h).
struct RecallConfig {
  double fraction = 0;       // of the rows
  double shorter_share = 0;  // of these, rows of several shorter sequences: a long phase keeps what short ones taught
  double answer_weight = 4;  // of a value's bytes and what ends it, in the loss
  double repeat_probability = 0.85;
  double end_share = 0.35;  // of the repeats that stand at the end of the sequence
  double density = 1.0;     // factor on the usual number of facts
  // Weights of the kinds of values.
  double digits = 0.28, made_up_words = 0.37, dictionary_words = 0.1, names = 0.1, codes = 0.15;
};

/// [optimizer]: AdamW.
struct OptimizerConfig {
  double lr = 2e-3;
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  // on matrices only
  double clip = 1.0;          // of the global gradient norm; 0: off
};

/// [schedule]
struct ScheduleConfig {
  std::int64_t steps = 0;        // of the whole run
  std::string kind = "wsd";      // cosine | wsd (constant, then linear)
  std::int64_t warmup = 100;     // steps
  double decay_fraction = 0.2;   // wsd: the last part of the run's tokens
  double final_fraction = 0.05;  // of the learning rate, at the end
};

/// [[phase]]: from `step` on, this length, batch and attention. Keys a later phase leaves out keep their value.
struct PhaseConfig {
  std::int64_t step = 0;
  std::int64_t sequence_length = 2048;
  std::int64_t batch_tokens = 65536;
  std::int64_t micro_batch_tokens = 65536;  // what one forward pass holds; gradients accumulate over the batch
  AttentionPlan plan;
  double lr_scale = 1.0;
  bool checkpoint_activations = false;
};

struct TrainConfig {
  RunConfig run;
  ModelSource model;
  DataConfig data;
  RecallConfig recall;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  std::vector<PhaseConfig> phases;
  nlohmann::json source;  // the file after overrides, kept in checkpoints
};

/// Reads `root` (a parsed TOML file); `source` names it in errors. Reads no other file, except the config.json of
/// init_from, and writes nothing.
TrainConfig parse_train_config(const nlohmann::json& root, const std::string& source);

/// File, then overrides, then parse_train_config.
TrainConfig load_train_config(const std::filesystem::path& file, const std::vector<std::string>& overrides);

/// The phases as JSON: what a checkpoint and a finished model carry as their schedule.
nlohmann::json schedule_to_json(const TrainConfig& config);

}  // namespace moba::lm
