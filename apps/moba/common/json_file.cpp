#include "common/json_file.h"

#include "lm/util/files.h"

namespace moba::app {

void write_json(const std::string& file, const nlohmann::ordered_json& json) {
  if (file.empty()) return;
  const auto replace = nlohmann::ordered_json::error_handler_t::replace;
  lm::write_file_atomically(file, json.dump(2, ' ', false, replace) + "\n");
}

}  // namespace moba::app
