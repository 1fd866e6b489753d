// AdamW over float32 master weights, without a wait for the device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "lm/checkpoint/safetensors.h"
#include "lm/config/train_config.h"
#include "lm/model/model.h"

namespace moba::lm {

class AdamW {
 public:
  /// Takes every parameter of the model, on its device. Weight decay falls on those of two and more dimensions.
  AdamW(Model& model, const OptimizerConfig& config);

  struct StepInfo {
    torch::Tensor gradient_norm;  // float32 [], before clipping
    torch::Tensor skipped;        // float32 []: 1 where the norm was not finite and nothing was changed
  };
  /// Clips the gradients to the global norm, updates and drops them. A gradient that is not finite skips the step.
  StepInfo step(double learning_rate);

  /// Copies on the CPU for a checkpoint: "exp_avg.NAME", "exp_avg_sq.NAME" float32, "step" float32 [].
  NamedTensors state() const;
  /// Error when a tensor is missing, unknown or of another shape; `where` names the source.
  void load_state(const NamedTensors& state, const std::string& where);

 private:
  struct Group {
    std::vector<std::string> names;
    std::vector<torch::Tensor> parameters, exp_avg, exp_avg_sq;
    double weight_decay = 0;
  };

  OptimizerConfig config_;
  std::vector<Group> groups_;
  torch::Tensor steps_;  // float32 [], counts the updates that were made
};

}  // namespace moba::lm
