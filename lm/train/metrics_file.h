// metrics.jsonl: a JSON object a line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moba::lm {

/// The lines of `text` whose records have a "step" of at most `step`. What is no such record, and a last line cut short
/// by a kill, is dropped.
std::string records_up_to(std::string_view text, std::int64_t step);

}  // namespace moba::lm
