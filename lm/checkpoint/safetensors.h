// The safetensors file format: 8 bytes of header length, a JSON header, raw little-endian tensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <torch/torch.h>

namespace moba::lm {

using NamedTensors = std::map<std::string, torch::Tensor>;

/// What the header says of one tensor.
struct TensorEntry {
  torch::Dtype dtype = torch::kFloat32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  // bytes, counted from the end of the header
};

/// An open file whose header has been checked in full: length, JSON, dtypes, shapes, ranges that lie within the file,
/// do not overlap and leave no hole. Nothing of a tensor's size is allocated before `read`.
class SafetensorsFile {
 public:
  /// Error names the file, the tensor and the rule.
  explicit SafetensorsFile(const std::filesystem::path& file);
  ~SafetensorsFile();

  const std::map<std::string, TensorEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// A copy on the CPU. Error when the file has no such tensor.
  torch::Tensor read(const std::string& name) const;

 private:
  struct Mapping;

  std::unique_ptr<Mapping> mapping_;
  std::map<std::string, TensorEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// Reads every tensor, on the CPU, memory-mapped while it copies. Checks length, header, dtypes, ranges and overlaps
/// before anything is allocated; Error names the file, the tensor and the rule.
NamedTensors read_safetensors(const std::filesystem::path& file);

/// Writes to a temporary name, flushes, renames. Tensors may be on any device and need not be contiguous.
void write_safetensors(const std::filesystem::path& file, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace moba::lm
