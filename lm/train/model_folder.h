// A trained model as a Hugging Face directory that carries how it was trained.
#pragma once

#include <filesystem>
#include <optional>

#include <nlohmann/json.hpp>

#include "lm/model/model.h"

namespace moba::lm {

/// Writes config.json (with `schedule` under "moba"), the weights as `dtype` and, where given, tokenizer.model into
/// `folder`, which is removed again when something fails.
void write_model_folder(const std::filesystem::path& folder, const Model& model, const ModelConfig& config,
                        torch::Dtype dtype, const nlohmann::json& schedule,
                        const std::optional<std::filesystem::path>& tokenizer_file);

}  // namespace moba::lm
