#include "moba/options.h"

#include <cstddef>
#include <string>

#include "moba/error.h"
#include "selectors/selector.h"

namespace moba {
namespace {

constexpr const char* kShares[] = {"head", "group", "layer"};
constexpr const char* kShareScores[] = {"sum_logit", "sum_prob", "max"};
constexpr const char* kRepresentativeDTypes[] = {"input", "float32"};

/// The enumerator whose place in `names` is that of `name`.
template <class Enum, std::size_t kCount>
Enum from_name(const char* option, std::string_view name, const char* const (&names)[kCount]) {
  std::string known;
  for (std::size_t i = 0; i < kCount; ++i) {
    if (name == names[i]) return static_cast<Enum>(i);
    known += (i == 0 ? "" : ", ") + std::string(names[i]);
  }
  throw Error(ErrorCode::kInvalidArgument, std::string(option) + " is '" + std::string(name) +
                                               "'; it must be one of: " + known + ". Choose one of these names.");
}

template <class Enum, std::size_t kCount>
const char* name_in(const char* option, Enum value, const char* const (&names)[kCount]) {
  if (static_cast<std::size_t>(value) < kCount) return names[static_cast<std::size_t>(value)];
  throw Error(ErrorCode::kInvalidArgument, std::string(option) + " is " + std::to_string(static_cast<int>(value)) +
                                               "; it must be a value of its enumeration. Use its name.");
}

}  // namespace

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

const char* name_of(Share share) {
  return name_in("share", share, kShares);
}
const char* name_of(ShareScore score) {
  return name_in("share_score", score, kShareScores);
}
const char* name_of(RepresentativeDType dtype) {
  return name_in("representative_dtype", dtype, kRepresentativeDTypes);
}
Share share_from_name(std::string_view name) {
  return from_name<Share>("share", name, kShares);
}
ShareScore share_score_from_name(std::string_view name) {
  return from_name<ShareScore>("share_score", name, kShareScores);
}
RepresentativeDType representative_dtype_from_name(std::string_view name) {
  return from_name<RepresentativeDType>("representative_dtype", name, kRepresentativeDTypes);
}

}  // namespace moba
