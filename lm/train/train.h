// Training a model from one TOML file, in legs that can be cut off at any moment and resumed.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace moba::lm {

struct TrainArguments {
  std::filesystem::path config;                 // TOML
  std::vector<std::string> overrides;           // "section.key=value"
  std::optional<std::filesystem::path> out;     // run directory; overrides [run] out
  bool resume = false;                          // from the newest whole checkpoint in the run directory
  std::optional<double> max_minutes;            // stop cleanly with a checkpoint
  std::function<void(const std::string&)> log;  // one line at a time (step lines, notices)
};

enum class TrainOutcome { kFinished, kStoppedByTime, kInterrupted };

/// Checks paths and keys before anything is written. Errors name the key or file at fault.
TrainOutcome train(const TrainArguments& arguments);

}  // namespace moba::lm
