// The folder of a run: what lies where, and whether a run may begin in it.
#pragma once

#include <filesystem>

namespace moba::lm {

struct RunFolder {
  explicit RunFolder(std::filesystem::path folder) : root(std::move(folder)) {}

  std::filesystem::path root;
  std::filesystem::path checkpoints() const { return root / "checkpoints"; }
  std::filesystem::path metrics() const { return root / "metrics.jsonl"; }
  std::filesystem::path events() const { return root / "tensorboard"; }
  std::filesystem::path config() const { return root / "config.json"; }
  std::filesystem::path final_model() const { return root / "final"; }

  bool holds_a_run() const;

  /// Error when the folder cannot be made or written, or holds a run and `resume` is false. Makes missing folders.
  void prepare(bool resume) const;
};

}  // namespace moba::lm
