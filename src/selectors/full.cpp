// Full causal attention: the control that every sparse method is measured against.
#include "selectors/selector.h"

namespace moba {
namespace {

Selection plan(const AttentionOptions&, const Extents&) {
  return {};
}

}  // namespace

constinit const Selector kFullSelector = {Kind::kFull, "full", plan, nullptr};

}  // namespace moba
