#include "lm/train/resume_parts.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <string>
#include <utility>

#include "lm/util/fail.h"
#include "lm/util/files.h"

namespace moba::lm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kIndex = "resume.json";
// A part's header: some hundred bytes a tensor. Kept free so that a part stays within its limit.
constexpr std::int64_t kHeaderReserve = 128 << 10;
constexpr std::int64_t kBytesOfName = 256;

fs::path part_file(const fs::path& folder, std::size_t index) {
  return folder / fmt::format("resume-{:04}.safetensors", index + 1);
}

// Weights as they are, moments in bfloat16, all under names that tell them apart.
NamedTensors compact_tensors(const Model& model, const AdamW& optimizer) {
  NamedTensors tensors;
  for (auto& [name, tensor] : copy_weights(model)) tensors["weight." + name] = tensor;
  for (auto& [name, tensor] : optimizer.state())
    tensors["optimizer." + name] = tensor.dim() == 0 ? tensor : tensor.to(torch::kBFloat16);
  return tensors;
}

std::vector<NamedTensors> cut(const NamedTensors& tensors, std::int64_t part_bytes) {
  std::vector<NamedTensors> parts(1);
  std::int64_t free = part_bytes - kHeaderReserve;
  std::int64_t names = 0;
  for (const auto& [name, tensor] : tensors) {
    const torch::Tensor flat = tensor.contiguous().flatten();
    const std::int64_t size = flat.element_size();
    for (std::int64_t offset = 0; offset < flat.numel();) {
      if (free < size || names + kBytesOfName > kHeaderReserve) {
        parts.emplace_back();
        free = part_bytes - kHeaderReserve;
        names = 0;
      }
      const std::int64_t count = std::min(flat.numel() - offset, free / size);
      parts.back()[fmt::format("{}@{}", name, offset)] = flat.narrow(0, offset, count);
      free -= count * size;
      names += kBytesOfName;
      offset += count;
    }
  }
  return parts;
}

json read_index(const fs::path& folder) {
  const fs::path file = folder / kIndex;
  json index = json::parse(read_file(file), nullptr, false);
  if (!index.is_object() || !index.contains("position") || !index.contains("parts") ||
      !index["parts"].is_number_unsigned() || !index.contains("tensors") || !index["tensors"].is_object())
    fail(file.string(), "not the index of resume files");
  return index;
}

// Empty tensors of the shapes and types that the index lists.
NamedTensors allocate(const json& list, const std::string& where) {
  NamedTensors tensors;
  for (const auto& [name, entry] : list.items()) {
    std::vector<std::int64_t> shape;
    try {
      shape = entry.at("shape").get<std::vector<std::int64_t>>();
    } catch (const json::exception&) {
      fail(where, fmt::format("tensors.{}: has no shape", name));
    }
    tensors[name] = torch::zeros(shape, torch::kFloat32);
  }
  return tensors;
}

}  // namespace

bool has_resume_parts(const fs::path& folder) {
  return fs::exists(folder / kIndex);
}

TrainPosition read_resume_position(const fs::path& folder) {
  const json index = read_index(folder);
  return parse_position(index["position"], (folder / kIndex).string());
}

void check_resume_folder(const fs::path& folder) {
  if (!fs::exists(folder)) return;
  if (!fs::is_directory(folder)) fail("run.resume_parts = " + folder.string(), "must be a folder, and is a file");
  if (!fs::is_empty(folder) && !has_resume_parts(folder))
    fail("run.resume_parts = " + folder.string(), "holds other files; name an empty or new folder");
}

void write_resume_parts(const fs::path& folder, const Model& model, const AdamW& optimizer,
                        const TrainPosition& position, std::int64_t part_bytes) {
  const fs::path target = fs::absolute(folder).lexically_normal();
  fs::path made = target;
  made += ".unfinished";
  std::error_code code;
  fs::remove_all(made, code);
  const NamedTensors tensors = compact_tensors(model, optimizer);
  const std::vector<NamedTensors> parts = cut(tensors, part_bytes);
  json list = json::object();
  for (const auto& [name, tensor] : tensors) list[name] = {{"shape", tensor.sizes().vec()}};
  for (std::size_t i = 0; i < parts.size(); ++i) write_safetensors(part_file(made, i), parts[i]);
  const json index = {{"position", to_json(position)}, {"parts", parts.size()}, {"tensors", list}};
  write_file_atomically(made / kIndex, index.dump(2) + "\n");
  replace_folder(made, target);
}

void load_resume_parts(const fs::path& folder, Model& model, AdamW& optimizer) {
  const fs::path index_file = folder / kIndex;
  const json index = read_index(folder);
  NamedTensors tensors = allocate(index["tensors"], index_file.string());
  std::map<std::string, std::int64_t> filled;
  for (std::size_t i = 0; i < index["parts"].get<std::size_t>(); ++i) {
    const fs::path file = part_file(folder, i);
    for (const auto& [piece, values] : read_safetensors(file)) {
      const std::size_t at = piece.rfind('@');
      const std::string name = piece.substr(0, at);
      std::int64_t offset = -1;
      if (at != std::string::npos) std::from_chars(piece.data() + at + 1, piece.data() + piece.size(), offset);
      const auto found = tensors.find(name);
      if (found == tensors.end()) fail(file.string(), fmt::format("tensor '{}' is not in {}", piece, kIndex));
      torch::Tensor flat = found->second.view({-1});
      if (offset < 0 || offset + values.numel() > flat.numel())
        fail(file.string(), fmt::format("tensor '{}' reaches beyond its shape", piece));
      flat.narrow(0, offset, values.numel()).copy_(values);
      filled[name] += values.numel();
    }
  }
  NamedTensors weights, moments;
  for (auto& [name, tensor] : tensors) {
    if (filled[name] != tensor.numel()) fail(index_file.string(), fmt::format("tensor '{}' is not whole", name));
    const bool weight = name.rfind("weight.", 0) == 0;
    (weight ? weights : moments)[name.substr(name.find('.') + 1)] = tensor;
  }
  load_weights(weights, model, folder.string());
  optimizer.load_state(moments, folder.string());
}

}  // namespace moba::lm
