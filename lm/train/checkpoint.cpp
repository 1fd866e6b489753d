#include "lm/train/checkpoint.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <string_view>

#include "lm/train/model_folder.h"
#include "lm/util/fail.h"
#include "lm/util/files.h"
#include "lm/util/json_object.h"

namespace moba::lm {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kUnfinished = ".unfinished";
constexpr std::string_view kRemoved = ".removed";

std::optional<std::int64_t> step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  if (name.rfind(kPrefix, 0) != 0) return std::nullopt;
  std::int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [stop, code] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (code != std::errc{} || stop != end) return std::nullopt;
  return step;
}

void flush_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;  // not every file system opens folders; the rename itself has been made
  ::fsync(descriptor);
  ::close(descriptor);
}

void rename_folder(const fs::path& from, const fs::path& to) {
  std::error_code code;
  fs::rename(from, to, code);
  if (code) fail(to.string(), "cannot be put in place: " + code.message());
}

// Renamed first, so that a folder is never seen half-removed under its own name.
void remove_folder(const fs::path& folder) {
  fs::path doomed = folder;
  doomed += kRemoved;
  std::error_code code;
  fs::remove_all(doomed, code);
  rename_folder(folder, doomed);
  fs::remove_all(doomed, code);
  if (code) fail(doomed.string(), "cannot be removed: " + code.message());
}

}  // namespace

std::vector<fs::path> list_checkpoints(const fs::path& folder) {
  std::vector<std::pair<std::int64_t, fs::path>> found;
  std::error_code code;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, code)) {
    const std::optional<std::int64_t> step = step_of(entry.path());
    if (step && entry.is_directory()) found.emplace_back(*step, entry.path());
  }
  std::sort(found.begin(), found.end(), std::greater<>());
  std::vector<fs::path> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

void replace_folder(const fs::path& made, const fs::path& target) {
  if (fs::exists(target)) remove_folder(target);
  rename_folder(made, target);
  flush_folder(target.parent_path());
}

void save_checkpoint(const fs::path& folder, const Model& model, const ModelConfig& config, const AdamW& optimizer,
                     const TrainPosition& position, const std::optional<fs::path>& tokenizer_file, std::int64_t keep) {
  const fs::path target = folder / fmt::format("{}{:09}", kPrefix, position.step);
  fs::path made = target;
  made += kUnfinished;
  write_model_folder(made, model, config, torch::kFloat32, position.schedule, tokenizer_file);
  try {
    write_safetensors(made / "optimizer.safetensors", optimizer.state());
    write_file_atomically(made / "state.json", to_json(position).dump(2) + "\n");
  } catch (...) {
    std::error_code code;
    fs::remove_all(made, code);
    throw;
  }
  flush_folder(made);
  replace_folder(made, target);
  const std::vector<fs::path> all = list_checkpoints(folder);
  for (std::size_t i = static_cast<std::size_t>(keep); i < all.size(); ++i) remove_folder(all[i]);
}

void load_weights(const NamedTensors& weights, Model& model, const std::string& where) {
  const torch::NoGradGuard no_grad;
  std::size_t used = 0;
  for (auto& item : model->named_parameters()) {
    const auto found = weights.find(item.key());
    if (found == weights.end()) fail(where, fmt::format("tensor '{}' is missing", item.key()));
    if (found->second.sizes() != item.value().sizes())
      fail(where, fmt::format("tensor '{}' has another shape than the model's", item.key()));
    item.value().copy_(found->second);
    ++used;
  }
  if (used != weights.size())
    fail(where, fmt::format("it holds {} tensors where the model has {}", weights.size(), used));
}

NamedTensors copy_weights(const Model& model) {
  NamedTensors weights;
  for (const auto& item : model->named_parameters())
    weights[item.key()] = item.value().detach().to(torch::kCPU, torch::kFloat32).clone();
  return weights;
}

TrainPosition read_position(const fs::path& checkpoint) {
  const fs::path file = checkpoint / "state.json";
  return parse_position(parse_json(read_file(file), file.string()), file.string());
}

void load_checkpoint(const fs::path& checkpoint, Model& model, AdamW& optimizer) {
  const fs::path weights_file = checkpoint / "model.safetensors";
  load_weights(read_safetensors(weights_file), model, weights_file.string());
  const fs::path optimizer_file = checkpoint / "optimizer.safetensors";
  optimizer.load_state(read_safetensors(optimizer_file), optimizer_file.string());
}

void remove_leftovers(const fs::path& folder) {
  std::error_code code;
  std::vector<fs::path> doomed;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, code)) {
    const std::string extension = entry.path().extension().string();
    if (extension == kUnfinished || extension == kRemoved) doomed.push_back(entry.path());
  }
  for (const fs::path& path : doomed) fs::remove_all(path, code);
}

}  // namespace moba::lm
