// Training checkpoints: a folder a step, whole or not there, the newest few kept.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "lm/checkpoint/safetensors.h"
#include "lm/model/model.h"
#include "lm/train/optimizer.h"
#include "lm/train/position.h"

namespace moba::lm {

/// Checkpoint folders under `folder` ("step-000001200"), newest first.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& folder);

/// Writes `folder`/step-N: model.safetensors and config.json (float32 weights, a model directory of its own),
/// optimizer.safetensors, state.json. It is made under another name and renamed when it is on the disk; then all but
/// the newest `keep` are removed. `config` carries the plan of the phase; `tokenizer_file` goes along where there is
/// one.
void save_checkpoint(const std::filesystem::path& folder, const Model& model, const ModelConfig& config,
                     const AdamW& optimizer, const TrainPosition& position,
                     const std::optional<std::filesystem::path>& tokenizer_file, std::int64_t keep);

/// Where a checkpoint stands. Error names the file and key at fault.
TrainPosition read_position(const std::filesystem::path& checkpoint);

/// Reads a checkpoint's tensors into the model and the optimizer. Error names the file at fault.
void load_checkpoint(const std::filesystem::path& checkpoint, Model& model, AdamW& optimizer);

/// Copies weights by name into the model; `where` names their source in errors.
void load_weights(const NamedTensors& weights, Model& model, const std::string& where);

/// The model's weights by name, float32 on the CPU.
NamedTensors copy_weights(const Model& model);

/// Removes what a killed run left half-written under `folder`.
void remove_leftovers(const std::filesystem::path& folder);

/// Renames `made` to `target`, replacing a folder that is there, and flushes the folder above.
void replace_folder(const std::filesystem::path& made, const std::filesystem::path& target);

}  // namespace moba::lm
