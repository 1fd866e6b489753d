#include "common/gate_flags.h"

#include <fmt/format.h>

#include "common/errors.h"
#include "common/limits.h"

namespace moba::app {

void GateFlags::declare(CLI::App& command, const char* group) {
  command
      .add_flag("--force-previous", force_previous,
                "Every row attends the block before its own; it takes a slot of top-k")
      ->group(group);
  command.add_option("--sink-blocks", sink_blocks, "Every row attends the first so many blocks; each takes a slot")
      ->check(at_least(0))
      ->group(group);
  command.add_option("--share", share, "Who chooses: each query head, the group of a key head together, or the layer")
      ->check(CLI::IsMember({"head", "group", "layer"}))
      ->group(group);
  command.add_option("--share-score", share_score, "How heads that choose together score a block")
      ->check(CLI::IsMember({"sum_logit", "sum_prob", "max"}))
      ->group(group);
  command.add_option("--representative-dtype", representative_dtype, "Block means: rounded to the keys' dtype, or not")
      ->check(CLI::IsMember({"input", "float32"}))
      ->group(group);
}

bool GateFlags::any() const {
  return !command_line().empty();
}

void GateFlags::apply(AttentionOptions& options) const {
  const std::int64_t slots = options.top_k - 1 - (force_previous ? 1 : 0);
  if (sink_blocks > slots) {
    throw UsageError(
        fmt::format("--sink-blocks {}{}: --top-k {} holds the own block and {} more; raise it, or force fewer",
                    sink_blocks, force_previous ? " with --force-previous" : "", options.top_k, options.top_k - 1));
  }
  options.force_previous = force_previous;
  options.sink_blocks = sink_blocks;
  options.share = share_from_name(share);
  options.share_score = share_score_from_name(share_score);
  options.representative_dtype = representative_dtype_from_name(representative_dtype);
}

std::string GateFlags::command_line() const {
  const GateFlags usual;
  std::string line;
  if (force_previous) line += " --force-previous";
  if (sink_blocks != usual.sink_blocks) line += fmt::format(" --sink-blocks {}", sink_blocks);
  if (share != usual.share) line += " --share " + share;
  if (share_score != usual.share_score) line += " --share-score " + share_score;
  if (representative_dtype != usual.representative_dtype) line += " --representative-dtype " + representative_dtype;
  return line;
}

}  // namespace moba::app
