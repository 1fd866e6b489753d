#include "common/model_choice.h"

#include <ATen/Parallel.h>

#include <system_error>
#include <vector>

#include <fmt/format.h>

#include "common/limits.h"
#include "lm/util/device.h"
#include "moba/error.h"

namespace moba::app {
namespace {

namespace fs = std::filesystem;

constexpr const char* kShippedName = "models/books-64k";

torch::Dtype dtype_from(const std::string& name, torch::Device device) {
  if (name == "float32") return torch::kFloat32;
  if (name == "bfloat16") return torch::kBFloat16;
  return lm::preferred_dtype(device);
}

}  // namespace

void DeviceChoice::declare(CLI::App& command) {
  command.add_option("--device", device, "cpu, cuda, or auto: cuda where there is one")
      ->check(CLI::IsMember({"cpu", "cuda", "auto"}))
      ->capture_default_str()
      ->group("Machine");
  command.add_option("--threads", threads, "Threads of the CPU (default: all cores)")
      ->check(between(1, 4096))
      ->group("Machine");
}

torch::Device DeviceChoice::apply() const {
  if (threads > 0) at::set_num_threads(static_cast<int>(threads));
  return lm::resolve_device(device);
}

void ModelChoice::declare(CLI::App& command) {
  command
      .add_option("--model", model,
                  "Folder of the model in Hugging Face format (default: the one that comes with moba)")
      ->type_name("DIR")
      ->group("Model");
  command.add_option("--dtype", dtype, "float32, bfloat16, or auto: the faster one on the device")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str()
      ->group("Machine");
  device.declare(command);
}

std::vector<fs::path> shipped_model_places() {
  std::vector<fs::path> places;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    places.push_back((program.parent_path() / ".." / kShippedName).lexically_normal());
    places.push_back(program.parent_path() / kShippedName);
  }
  places.push_back(fs::path(MOBA_SOURCE_DIR) / kShippedName);
  return places;
}

fs::path find_shipped_model() {
  std::error_code error;
  for (const fs::path& place : shipped_model_places()) {
    if (fs::exists(place / "config.json", error)) return place;
  }
  return {};
}

fs::path ModelChoice::directory() const {
  if (!model.empty()) return model;
  fs::path found = find_shipped_model();
  if (!found.empty()) return found;
  std::string message = "the model that comes with moba was not found in";
  for (const fs::path& place : shipped_model_places()) message += " " + place.string();
  throw Error(ErrorCode::kInvalidArgument, message + "; name a model with --model DIR");
}

lm::Pretrained ModelChoice::load() const {
  const torch::Device chosen = device.apply();
  return lm::load_pretrained(directory(), chosen, dtype_from(dtype, chosen));
}

}  // namespace moba::app
