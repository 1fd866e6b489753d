// MoBA (arXiv 2502.13189, section 2): the row's own block and the top_k - 1 past blocks whose mean key has the largest
// product with the query.
#include <algorithm>

#include "checks.h"
#include "selectors/selector.h"

namespace moba {
namespace {

Selection plan(const AttentionOptions& options, const Extents& extents) {
  require(options.block_size >= 1, "block_size", std::to_string(options.block_size), "at least 1 for kind moba",
          "The published values are 512 to 4096.");
  require(options.top_k >= 1, "top_k", std::to_string(options.top_k), "at least 1: a row always attends its own block",
          "The published values are 3 to 12.");
  Selection selection;
  if (options.compat_topk1_full && options.top_k == 1) return selection;
  selection.kind = SelectionKind::kList;
  selection.block_size = options.block_size;
  const std::int64_t past_blocks = (std::max<std::int64_t>(extents.max_seqlen_k, 1) - 1) / options.block_size;
  const std::int64_t budget = std::min(options.top_k - 1, past_blocks);
  selection.blocks = TensorView(nullptr, DType::kInt32, {extents.total_q, extents.heads, budget});
  return selection;
}

void choose(Context& context, const Backend& backend, const AttentionOptions&, const SelectArgs& args) {
  backend.select(context, args);
}

}  // namespace

constinit const Selector kMobaSelector = {Kind::kMoba, "moba", plan, choose};

}  // namespace moba
