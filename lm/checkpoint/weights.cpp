#include "lm/checkpoint/weights.h"

#include <fmt/format.h>

#include <set>
#include <system_error>

#include "lm/checkpoint/weight_map.h"
#include "lm/util/fail.h"
#include "lm/util/files.h"

namespace moba::lm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using torch::Tensor;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

/// "model-00001-of-00003.safetensors"
bool is_part_name(const std::string& name) {
  return name.rfind("model-", 0) == 0 && name.find("-of-") != std::string::npos && name.size() > 12 &&
         name.substr(name.size() - 12) == ".safetensors";
}

/// Removes weight files that are not in `keep`: a reader would otherwise find two checkpoints in one directory.
void remove_others(const fs::path& directory, const std::set<std::string>& keep) {
  std::vector<fs::path> stale;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    const bool is_ours = name == kSingle || name == kIndex || is_part_name(name);
    if (is_ours && keep.count(name) == 0) stale.push_back(entry.path());
  }
  for (const fs::path& file : stale) {
    std::error_code error;
    fs::remove(file, error);
    if (error) fail(file, "an older weight file cannot be removed: " + error.message());
  }
}

std::vector<NamedTensors> split_into_parts(const NamedTensors& tensors, std::int64_t max_part_bytes) {
  std::vector<NamedTensors> parts(1);
  std::int64_t filled = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto bytes = static_cast<std::int64_t>(tensor.nbytes());
    if (filled > 0 && filled + bytes > max_part_bytes) {
      parts.emplace_back();
      filled = 0;
    }
    parts.back()[name] = tensor;
    filled += bytes;
  }
  return parts;
}

}  // namespace

WeightFiles::WeightFiles(const fs::path& directory) {
  std::error_code error;
  if (fs::exists(directory / kSingle, error)) {
    open_part(directory / kSingle);
  } else if (fs::exists(directory / kIndex, error)) {
    open_index(directory / kIndex);
  } else {
    fail(directory,
         fmt::format("holds neither {} nor {}; weights are read in the safetensors format only", kSingle, kIndex));
  }
}

void WeightFiles::open_part(const fs::path& file) {
  parts_.push_back(std::make_unique<SafetensorsFile>(file));
  for (const auto& [name, entry] : parts_.back()->entries()) {
    if (!entries_.emplace(name, entry).second) fail(file, fmt::format("tensor {} stands in another part too", name));
    owner_[name] = parts_.back().get();
  }
}

void WeightFiles::open_index(const fs::path& file) {
  std::map<std::string, const SafetensorsFile*> opened;
  for (const auto& [name, part] : parse_weight_map(read_file(file), file.string())) {
    if (opened.count(part) == 0) {
      open_part(file.parent_path() / part);
      opened[part] = parts_.back().get();
    }
    const auto owner = owner_.find(name);
    if (owner == owner_.end() || owner->second != opened[part]) {
      fail(file, fmt::format("weight_map: {} should be in {}, which has no such tensor", name, part));
    }
  }
}

Tensor WeightFiles::read(const std::string& name) const {
  return owner_.at(name)->read(name);
}

void write_weight_files(const fs::path& directory, const NamedTensors& tensors, std::int64_t max_part_bytes) {
  if (max_part_bytes < 1) fail(directory, fmt::format("max_shard_bytes={} must be at least 1", max_part_bytes));
  const std::map<std::string, std::string> metadata = {{"format", "pt"}};  // transformers asks for it
  const std::vector<NamedTensors> parts = split_into_parts(tensors, max_part_bytes);
  if (parts.size() == 1) {
    write_safetensors(directory / kSingle, tensors, metadata);
    remove_others(directory, {kSingle});
    return;
  }
  std::set<std::string> written{kIndex};
  json weight_map = json::object();
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, parts.size());
    write_safetensors(directory / name, parts[i], metadata);
    written.insert(name);
    for (const auto& [tensor_name, tensor] : parts[i]) {
      weight_map[tensor_name] = name;
      total += tensor.nbytes();
    }
  }
  const json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  write_file_atomically(directory / kIndex, index.dump(2) + "\n");
  remove_others(directory, written);
}

}  // namespace moba::lm
