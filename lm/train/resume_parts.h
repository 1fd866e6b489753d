// A compact copy of a run for a change of machine: float32 weights and bfloat16 moments in small files.
#pragma once

#include <cstdint>
#include <filesystem>

#include "lm/model/model.h"
#include "lm/train/checkpoint.h"
#include "lm/train/optimizer.h"

namespace moba::lm {

/// True when `folder` holds resume files.
bool has_resume_parts(const std::filesystem::path& folder);

/// Where the run stood when they were written. Error names the file and key at fault.
TrainPosition read_resume_position(const std::filesystem::path& folder);

/// Error when `folder` exists, is not empty and holds something other than resume files.
void check_resume_folder(const std::filesystem::path& folder);

/// Writes resume.json and resume-0001.safetensors … of at most `part_bytes` each; the folder appears whole. Tensors are
/// cut where a part is full: "NAME@OFFSET" holds elements from OFFSET on.
void write_resume_parts(const std::filesystem::path& folder, const Model& model, const AdamW& optimizer,
                        const TrainPosition& position, std::int64_t part_bytes);

/// Reads them into the model and the optimizer. Training goes on from rounded moments, so not bit-equal.
void load_resume_parts(const std::filesystem::path& folder, Model& model, AdamW& optimizer);

}  // namespace moba::lm
