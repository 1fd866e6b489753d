// The schedule section and the phases of a training config, with the rules that tie them together.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "lm/config/train_config.h"

namespace moba::lm {

/// The shortest sequence that has room for a fact, its repeat and text between.
inline constexpr std::int64_t kShortestRecallSequence = 512;

/// Beyond any run, and far from overflow.
inline constexpr std::int64_t kMaxSteps = std::int64_t{1} << 40;

struct PhaseRules {
  const ModelConfig& model;
  bool recall = false;  // facts are woven in
};

/// Starts given in tokens become steps: a phase begins with the first step before which that many tokens were seen.
void parse_phases(const nlohmann::json& schedule_json, const nlohmann::json& phases_json, const std::string& source,
                  const PhaseRules& rules, ScheduleConfig& schedule, std::vector<PhaseConfig>& phases);

}  // namespace moba::lm
