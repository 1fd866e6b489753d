// The list of methods. A new one adds its file, its constant in selector.h and its line here.
#include <array>
#include <string>

#include "moba/error.h"
#include "selectors/selector.h"

namespace moba {

std::span<const Selector* const> selectors() {
  static constexpr std::array kSelectors = {&kFullSelector, &kWindowSelector, &kMobaSelector};
  return kSelectors;
}

const Selector& selector_of(Kind kind) {
  for (const Selector* selector : selectors()) {
    if (selector->kind == kind) return *selector;
  }
  throw Error(ErrorCode::kInvalidArgument, "kind is " + std::to_string(static_cast<int>(kind)) +
                                               "; it must be a value of moba::Kind. Use kind_from_name().");
}

}  // namespace moba
