#include "moba/options.h"

#include <string>

#include "moba/error.h"
#include "selectors/selector.h"

namespace moba {

const char* name_of(Kind kind) {
  return selector_of(kind).name;
}

Kind kind_from_name(std::string_view name) {
  std::string known;
  for (const Selector* selector : selectors()) {
    if (name == selector->name) return selector->kind;
    known += (known.empty() ? "" : ", ") + std::string(selector->name);
  }
  throw Error(ErrorCode::kInvalidArgument,
              "kind is '" + std::string(name) + "'; it must be one of: " + known + ". Choose one of these names.");
}

}  // namespace moba
