// --attention and the flags that make a plan for a checkpoint that has none.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <CLI/CLI.hpp>

#include "common/gate_flags.h"
#include "lm/model/config.h"
#include "lm/model/plan.h"

namespace moba::app {

/// --block-size, --top-k, --last-n-full and the flags of the gate: a MoBA plan given on the command line.
struct PlanFlags {
  std::optional<std::int64_t> block_size;
  std::optional<std::int64_t> top_k;
  std::optional<std::int64_t> last_n_full;
  GateFlags gate;

  void declare(CLI::App& command);
  bool any() const { return block_size || top_k || last_n_full || gate.any(); }
};

/// The names --attention takes: "model" is the plan of the checkpoint; "full" makes every layer full; "moba" is the
/// plan of the flags if there are any, else that of the checkpoint where it has MoBA layers. UsageError when "moba" is
/// asked of a checkpoint without MoBA layers and --block-size or --top-k is missing.
lm::AttentionPlan choose_plan(const std::string& attention, const lm::ModelConfig& config, const PlanFlags& flags);

/// What the validators of --attention accept.
CLI::IsMember attention_names();

}  // namespace moba::app
