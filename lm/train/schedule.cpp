#include "lm/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moba::lm {

Schedule::Schedule(const TrainConfig& config) : config_(config) {}

std::size_t Schedule::phase_index(std::int64_t step) const {
  std::size_t index = 0;
  while (index + 1 < config_.phases.size() && config_.phases[index + 1].step <= step) ++index;
  return index;
}

const PhaseConfig& Schedule::phase(std::int64_t step) const {
  return config_.phases[phase_index(step)];
}

std::int64_t Schedule::tokens_before(std::int64_t step) const {
  std::int64_t tokens = 0;
  const std::size_t last = phase_index(step);
  for (std::size_t i = 0; i < last; ++i)
    tokens += (config_.phases[i + 1].step - config_.phases[i].step) * config_.phases[i].batch_tokens;
  return tokens + (step - config_.phases[last].step) * config_.phases[last].batch_tokens;
}

double Schedule::learning_rate(std::int64_t step) const {
  const ScheduleConfig& schedule = config_.schedule;
  const double lr = config_.optimizer.lr * phase(step).lr_scale;
  if (step < schedule.warmup) return lr * static_cast<double>(step + 1) / static_cast<double>(schedule.warmup);
  const auto total = static_cast<double>(tokens_before(steps()));
  const auto seen = static_cast<double>(tokens_before(step));
  const double final_fraction = schedule.final_fraction;
  if (schedule.kind == "cosine") {
    const auto begin = static_cast<double>(tokens_before(std::min(schedule.warmup, steps())));
    const double progress = (seen - begin) / std::max(1.0, total - begin);
    return lr * (final_fraction + (1 - final_fraction) * 0.5 * (1 + std::cos(std::numbers::pi * progress)));
  }
  const double decay = total * schedule.decay_fraction;
  if (total - seen >= decay) return lr;
  return lr * (final_fraction + (1 - final_fraction) * (total - seen) / decay);
}

}  // namespace moba::lm
