#include "common/attention_choice.h"

#include <fmt/format.h>

#include "common/errors.h"
#include "common/limits.h"

namespace moba::app {

void PlanFlags::declare(CLI::App& command) {
  const char* group = "Attention";
  command.add_option("--block-size", block_size, "MoBA block size in tokens, in place of the checkpoint's plan")
      ->check(at_least(1))
      ->group(group);
  command.add_option("--top-k", top_k, "Blocks a row attends, its own counted, in place of the checkpoint's plan")
      ->check(at_least(1))
      ->group(group);
  command.add_option("--last-n-full", last_n_full, "With --block-size: so many last layers are full")
      ->check(at_least(0))
      ->group(group);
  gate.declare(command, group);
}

lm::AttentionPlan choose_plan(const std::string& attention, const lm::ModelConfig& config, const PlanFlags& flags) {
  if (attention == "full") {
    lm::AttentionPlan full;
    for (const AttentionOptions& layer : config.plan.layers) {
      full.layers.push_back({.kind = Kind::kFull, .softmax_scale = layer.softmax_scale});
    }
    return full;
  }
  if (attention == "model") return config.plan;
  if (!flags.any() && config.plan.has_moba()) return config.plan;
  if (!flags.block_size || !flags.top_k) {
    throw UsageError(fmt::format(
        "--attention moba: {}; give --block-size and --top-k (and --last-n-full)",
        config.plan.has_moba() ? "the flags name only a part of a plan" : "the checkpoint has no MoBA layers"));
  }
  const std::int64_t last = flags.last_n_full.value_or(0);
  if (last > config.num_hidden_layers) {
    throw UsageError(
        fmt::format("--last-n-full: {} is above the {} layers of the model", last, config.num_hidden_layers));
  }
  AttentionOptions options{.kind = Kind::kMoba, .block_size = *flags.block_size, .top_k = *flags.top_k};
  flags.gate.apply(options);
  return lm::uniform_plan(config.num_hidden_layers, options, last);
}

CLI::IsMember attention_names() {
  return CLI::IsMember({"model", "full", "moba"});
}

}  // namespace moba::app
