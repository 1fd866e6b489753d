// Which phase a step belongs to, its learning rate, and how many tokens came before it.
#pragma once

#include <cstdint>

#include "lm/config/train_config.h"

namespace moba::lm {

class Schedule {
 public:
  explicit Schedule(const TrainConfig& config);

  std::int64_t steps() const { return config_.schedule.steps; }
  const PhaseConfig& phase(std::int64_t step) const;
  /// Tokens of steps 0 … step - 1.
  std::int64_t tokens_before(std::int64_t step) const;
  /// Warm-up by steps, from lr/warmup to lr; then cosine over the rest of the tokens, or constant and linear over the
  /// last decay_fraction of all tokens; both to final_fraction. Times the phase's lr_scale.
  double learning_rate(std::int64_t step) const;

 private:
  std::size_t phase_index(std::int64_t step) const;

  const TrainConfig& config_;
};

}  // namespace moba::lm
