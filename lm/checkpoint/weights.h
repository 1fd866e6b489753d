// The weight files of a Hugging Face directory as one set of named tensors.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lm/checkpoint/safetensors.h"

namespace moba::lm {

/// model.safetensors, or the parts that model.safetensors.index.json names. Headers are read and checked, tensors are
/// not read until `read`.
class WeightFiles {
 public:
  /// Error names the file at fault: none there, a part missing, a tensor not in the part that the index names.
  explicit WeightFiles(const std::filesystem::path& directory);

  /// Every tensor's name -> what its header says.
  const std::map<std::string, TensorEntry>& entries() const { return entries_; }
  torch::Tensor read(const std::string& name) const;

 private:
  void open_part(const std::filesystem::path& file);
  void open_index(const std::filesystem::path& file);

  std::vector<std::unique_ptr<SafetensorsFile>> parts_;
  std::map<std::string, const SafetensorsFile*> owner_;
  std::map<std::string, TensorEntry> entries_;
};

/// Writes the tensors as one file, or as parts of at most `max_part_bytes` with an index (a tensor larger than that is
/// a part of its own). Each file appears whole; the index is written last, and weight files of an earlier save that no
/// longer belong are removed after it.
void write_weight_files(const std::filesystem::path& directory, const NamedTensors& tensors,
                        std::int64_t max_part_bytes);

}  // namespace moba::lm
