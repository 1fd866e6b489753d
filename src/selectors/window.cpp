// Sliding window with optional sink tokens: the last `window` keys, the row's own among them, and the first `sink`.
#include "checks.h"
#include "selectors/selector.h"

namespace moba {
namespace {

Selection plan(const AttentionOptions& options, const Extents&) {
  require(options.window >= 1, "window", std::to_string(options.window), "at least 1 for kind window",
          "Set how many keys a row sees, its own counted.");
  require(options.sink >= 0, "sink", std::to_string(options.sink), "at least 0", "0 means no sink tokens.");
  Selection selection;
  selection.kind = SelectionKind::kSpan;
  selection.window = options.window;
  selection.sink = options.sink;
  return selection;
}

}  // namespace

constinit const Selector kWindowSelector = {Kind::kWindow, "window", plan, nullptr};

}  // namespace moba
