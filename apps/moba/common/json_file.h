// Results as JSON files.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace moba::app {

/// Writes the file whole or not at all; does nothing when `file` is empty (the flag was not given). Names of files in
/// `json` need not be UTF-8: what is not becomes the replacement character.
void write_json(const std::string& file, const nlohmann::ordered_json& json);

}  // namespace moba::app
