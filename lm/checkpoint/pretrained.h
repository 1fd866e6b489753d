// A Hugging Face directory in and out: config.json, *.safetensors (sharded or not), tokenizer.model.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "lm/model/model.h"
#include "lm/tokenizer/tokenizer.h"

namespace moba::lm {

struct Pretrained {
  ModelConfig config;
  Model model{nullptr};
  std::unique_ptr<Tokenizer> tokenizer;
};

/// Reads a directory. `dtype` is the dtype of the weights in memory. Error names the file and key at fault.
Pretrained load_pretrained(const std::filesystem::path& directory, torch::Device device, torch::Dtype dtype);

/// Writes config.json and model.safetensors (weights as `dtype`), each to a temporary name and renamed; creates the
/// directory. Parts above `max_shard_bytes` are split with model.safetensors.index.json.
void save_pretrained(const std::filesystem::path& directory, const Model& model, const ModelConfig& config,
                     torch::Dtype dtype, std::int64_t max_shard_bytes = std::int64_t{4} << 30);

}  // namespace moba::lm
