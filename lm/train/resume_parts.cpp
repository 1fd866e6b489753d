#include "lm/train/resume_parts.h"

#include <fmt/core.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <numeric>
#include <string>
#include <utility>

#include "lm/train/resume_index.h"
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

ResumeIndex read_index(const fs::path& folder) {
  const fs::path file = folder / kIndex;
  return parse_resume_index(read_file(file), file.string());
}

std::int64_t elements_of(const std::vector<std::int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

// The pieces in the files make up every tensor of the index, once; known from their headers, before memory is taken.
void check_whole(const ResumeIndex& index, const std::deque<SafetensorsFile>& files, const fs::path& folder) {
  std::map<std::string, std::map<std::int64_t, std::int64_t>> pieces;  // tensor -> offset -> elements
  for (const SafetensorsFile& file : files) {
    for (const auto& [piece, entry] : file.entries()) {
      const auto [name, offset] = parse_piece_name(piece, folder.string());
      if (index.shapes.count(name) == 0) fail(folder, fmt::format("tensor '{}' is not in {}", piece, kIndex));
      const std::int64_t count = elements_of(entry.shape);
      if (count > 0 && !pieces[name].emplace(offset, count).second)
        fail(folder, fmt::format("tensor '{}' stands in two files", piece));
    }
  }
  for (const auto& [name, shape] : index.shapes) {
    std::int64_t filled = 0;
    for (const auto& [offset, count] : pieces[name]) {
      if (offset != filled) fail(folder, fmt::format("tensor '{}' is not whole at its element {}", name, filled));
      filled += count;
    }
    if (filled != elements_of(shape))
      fail(folder, fmt::format("tensor '{}' has {} elements in {} and {} in the files", name, elements_of(shape),
                               kIndex, filled));
  }
}

}  // namespace

bool has_resume_parts(const fs::path& folder) {
  return fs::exists(folder / kIndex);
}

TrainPosition read_resume_position(const fs::path& folder) {
  return read_index(folder).position;
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
  const ResumeIndex index = read_index(folder);
  std::deque<SafetensorsFile> files;
  for (std::int64_t i = 0; i < index.parts; ++i) files.emplace_back(part_file(folder, static_cast<std::size_t>(i)));
  check_whole(index, files, folder);
  NamedTensors tensors;
  for (const auto& [name, shape] : index.shapes) tensors[name] = torch::zeros(shape, torch::kFloat32);
  for (const SafetensorsFile& file : files) {
    for (const auto& item : file.entries()) {
      const auto [name, offset] = parse_piece_name(item.first, folder.string());
      const torch::Tensor values = file.read(item.first).flatten();
      tensors.at(name).view({-1}).narrow(0, offset, values.numel()).copy_(values);
    }
  }
  NamedTensors weights, moments;
  for (auto& [name, tensor] : tensors) {
    const bool weight = name.rfind("weight.", 0) == 0;
    (weight ? weights : moments)[name.substr(name.find('.') + 1)] = tensor;
  }
  load_weights(weights, model, folder.string());
  optimizer.load_state(moments, folder.string());
}

}  // namespace moba::lm
