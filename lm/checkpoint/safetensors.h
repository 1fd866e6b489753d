// The safetensors file format: 8 bytes of header length, a JSON header, raw little-endian tensors.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <torch/torch.h>

namespace moba::lm {

using NamedTensors = std::map<std::string, torch::Tensor>;

/// Reads every tensor, on the CPU, memory-mapped while it copies. Checks length, header, dtypes, ranges and overlaps
/// before anything is allocated; Error names the file, the tensor and the rule.
NamedTensors read_safetensors(const std::filesystem::path& file);

/// Writes to a temporary name, flushes, renames. Tensors may be on any device and need not be contiguous.
void write_safetensors(const std::filesystem::path& file, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace moba::lm
