// --model, --device, --dtype, --threads: which model runs, and on what.
#pragma once

#include <filesystem>
#include <string>

#include <CLI/CLI.hpp>

#include "lm/checkpoint/pretrained.h"

namespace moba::app {

struct DeviceChoice {
  std::string device = "auto";
  std::int64_t threads = 0;  // 0: as many as torch takes by itself (all cores)

  void declare(CLI::App& command);
  /// Sets the number of threads; Error when the device is not there.
  torch::Device apply() const;
};

struct ModelChoice {
  std::string model;  // empty: the shipped one
  std::string dtype = "auto";
  DeviceChoice device;

  void declare(CLI::App& command);
  std::filesystem::path directory() const;
  lm::Pretrained load() const;
};

/// Where the model that comes with the program is looked for, in this order.
std::vector<std::filesystem::path> shipped_model_places();
/// The first of them that holds a config.json; empty if none does.
std::filesystem::path find_shipped_model();

}  // namespace moba::app
