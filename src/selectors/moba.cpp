// MoBA (arXiv 2502.13189, section 2): the row's own block and the top_k - 1 past blocks whose mean key has the largest
// product with the query.
#include <algorithm>

#include "checks.h"
#include "selectors/selector.h"

namespace moba {
namespace {

std::int64_t lists_of(Share share, const Extents& extents) {
  switch (share) {
    case Share::kHead: return extents.heads;
    case Share::kGroup: return extents.kv_heads;
    case Share::kLayer: break;
  }
  return std::min<std::int64_t>(1, extents.heads);
}

Selection plan(const AttentionOptions& options, const Extents& extents) {
  require(options.block_size >= 1, "block_size", std::to_string(options.block_size), "at least 1 for kind moba",
          "The published values are 512 to 4096.");
  require(options.top_k >= 1, "top_k", std::to_string(options.top_k), "at least 1: a row always attends its own block",
          "The published values are 3 to 12.");
  // Each throws where the value is none of its enumeration.
  static_cast<void>(name_of(options.share));
  static_cast<void>(name_of(options.share_score));
  static_cast<void>(name_of(options.representative_dtype));
  const std::int64_t most_sinks = options.top_k - 1 - (options.force_previous ? 1 : 0);
  require(!options.force_previous || most_sinks >= 0, "force_previous", "true", "false for top_k 1",
          "The previous block takes a slot beside the own one: set top_k to at least 2.");
  require(options.sink_blocks >= 0 && options.sink_blocks <= most_sinks, "sink_blocks",
          std::to_string(options.sink_blocks),
          "between 0 and " + std::to_string(most_sinks) + ", the slots of top_k that the own block" +
              (options.force_previous ? " and the previous one leave" : " leaves"),
          "Raise top_k, or force fewer blocks.");
  Selection selection;
  if (options.compat_topk1_full && options.top_k == 1) return selection;
  selection.kind = SelectionKind::kList;
  selection.block_size = options.block_size;
  const std::int64_t past_blocks = most_past_blocks(extents.max_seqlen_k, options.block_size);
  const std::int64_t budget = std::min(options.top_k - 1, past_blocks);
  const std::int64_t lists = lists_of(options.share, extents);
  selection.blocks = TensorView(nullptr, DType::kInt32, {extents.total_q, lists, budget});
  return selection;
}

void choose(Context& context, const Backend& backend, const AttentionOptions&, const SelectArgs& args) {
  backend.select(context, args);
}

}  // namespace

constinit const Selector kMobaSelector = {Kind::kMoba, "moba", plan, choose};

}  // namespace moba
