#include "lm/train/metrics_file.h"

#include <nlohmann/json.hpp>

namespace moba::lm {

std::string records_up_to(std::string_view text, std::int64_t step) {
  std::string kept;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    if (end == std::string_view::npos) break;
    const nlohmann::json record = nlohmann::json::parse(text.substr(begin, end - begin), nullptr, false);
    if (record.is_object() && record.contains("step") && record["step"].is_number_unsigned() &&
        record["step"].get<std::uint64_t>() <= static_cast<std::uint64_t>(step))
      kept += text.substr(begin, end - begin + 1);
    begin = end + 1;
  }
  return kept;
}

}  // namespace moba::lm
