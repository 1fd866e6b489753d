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

/// Reads config.json of a directory. Error names the file and key at fault.
ModelConfig load_config(const std::filesystem::path& directory);

/// Reads a directory. `dtype` is the dtype of the weights in memory. Names and shapes of all tensors are checked
/// against config.json before a weight is read. Error names the file and key at fault.
Pretrained load_pretrained(const std::filesystem::path& directory, torch::Device device, torch::Dtype dtype);

/// Writes config.json and model.safetensors (weights as `dtype`), each to a temporary name and renamed; creates the
/// directory. Parts above `max_shard_bytes` are split with model.safetensors.index.json; weight files of an earlier
/// save that are no longer part of the checkpoint are removed.
void save_pretrained(const std::filesystem::path& directory, const Model& model, const ModelConfig& config,
                     torch::Dtype dtype, std::int64_t max_shard_bytes = std::int64_t{4} << 30);

/// The dtype in which a device runs a model fastest: bfloat16 on CUDA and on CPUs that multiply it in hardware
/// (AVX-512-BF16), else float32.
torch::Dtype preferred_dtype(torch::Device device);

}  // namespace moba::lm
