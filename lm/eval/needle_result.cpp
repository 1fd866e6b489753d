#include "lm/eval/needle_result.h"

#include <cctype>

namespace moba::lm {

bool is_right_answer(std::string_view continuation, std::string_view value) {
  if (continuation.starts_with(' ')) continuation.remove_prefix(1);
  if (!continuation.starts_with(value)) return false;
  if (continuation.size() == value.size()) return true;
  const auto next = static_cast<unsigned char>(continuation[value.size()]);
  return std::isalnum(next) == 0 && next < 0x80u;
}

double needle_depth(std::int64_t index, std::int64_t depths) {
  return depths == 1 ? 0.5 : static_cast<double>(index) / static_cast<double>(depths - 1);
}

}  // namespace moba::lm
