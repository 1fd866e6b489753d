// TOML files read into JSON values, with overrides from the command line.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace moba::lm {

/// Parses `text`; Error names `source`, the line and what is wrong. Dates are refused: no key here takes one.
nlohmann::json parse_toml(const std::string& text, const std::string& source);

/// Reads and parses a file.
nlohmann::json read_toml(const std::filesystem::path& file);

/// Sets "section.key=value" in `root`. The value is TOML ("3", "0.5", "true", "[1, 2]", "{kind = \"full\"}"); anything
/// else that is one word, or a path, is taken as a string. An array element is named by its index: "phase.0.step=10".
/// A missing section is created, so that the typed reader names a misspelt one.
void apply_override(nlohmann::json& root, const std::string& override_text);

}  // namespace moba::lm
