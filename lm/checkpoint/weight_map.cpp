#include "lm/checkpoint/weight_map.h"

#include <fmt/format.h>

#include <filesystem>

#include "lm/util/fail.h"
#include "lm/util/json_object.h"

namespace moba::lm {

std::map<std::string, std::string> parse_weight_map(std::string_view text, const std::string& source) {
  const nlohmann::json content = parse_json(text, source);
  const JsonObject map = JsonObject(content, source).object("weight_map");
  std::map<std::string, std::string> parts;
  for (const auto& item : content.at("weight_map").items()) {
    const std::string part = map.string_or(item.key(), "");
    // A part lies beside its index; anything else would let a checkpoint read files of the machine.
    const bool is_file_name = std::filesystem::path(part).filename() == part && part != "." && part != "..";
    if (part.empty() || !is_file_name || part.find('\0') != std::string::npos) {
      fail(source, fmt::format("weight_map: {} names the file '{}'; a part must be a file name in the same folder",
                               item.key(), part));
    }
    parts[item.key()] = part;
  }
  return parts;
}

}  // namespace moba::lm
