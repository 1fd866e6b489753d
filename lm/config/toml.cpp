#include "lm/config/toml.h"

#include <fmt/core.h>
#include <toml++/toml.h>

#include <charconv>
#include <optional>

#include "lm/util/files.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

using nlohmann::json;

[[noreturn]] void fail(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, message);
}

json to_json(const toml::node& node, const std::string& source) {
  if (const auto* table = node.as_table()) {
    json object = json::object();
    for (const auto& [key, value] : *table) object[std::string(key.str())] = to_json(value, source);
    return object;
  }
  if (const auto* array = node.as_array()) {
    json list = json::array();
    for (const auto& value : *array) list.push_back(to_json(value, source));
    return list;
  }
  if (const auto* value = node.as_string()) return value->get();
  if (const auto* value = node.as_integer()) return value->get();
  if (const auto* value = node.as_floating_point()) return value->get();
  if (const auto* value = node.as_boolean()) return value->get();
  fail(fmt::format("{}: line {}: dates and times are not used here; write a string or a number", source,
                   node.source().begin.line));
}

// The value of an override, or nothing when the text is no TOML value.
std::optional<json> parse_value(const std::string& text) {
  try {
    const toml::table table = toml::parse("value = " + text);
    if (table.size() != 1) return std::nullopt;  // a line break smuggled in a second key
    return to_json(*table.get("value"), "--set");
  } catch (const toml::parse_error&) {
    return std::nullopt;
  }
}

bool is_bare_word(const std::string& text) {
  // What cannot be mistaken for broken TOML: no quotes, brackets, commas or control characters.
  return !text.empty() && text.find_first_of("\"'[]{},\n\r\t#=") == std::string::npos;
}

std::optional<std::size_t> as_index(const std::string& text) {
  std::size_t index = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), index);
  if (code != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return index;
}

}  // namespace

json parse_toml(const std::string& text, const std::string& source) {
  try {
    return to_json(toml::parse(text, source), source);
  } catch (const toml::parse_error& error) {
    fail(fmt::format("{}: line {}, column {}: not TOML: {}", source, error.source().begin.line,
                     error.source().begin.column, std::string(error.description())));
  }
}

json read_toml(const std::filesystem::path& file) {
  return parse_toml(read_file(file), file.string());
}

void apply_override(json& root, const std::string& override_text) {
  const std::size_t equals = override_text.find('=');
  if (equals == std::string::npos || equals == 0)
    fail(fmt::format("--set '{}': expected section.key=value, for example --set optimizer.lr=1e-3", override_text));
  const std::string path = override_text.substr(0, equals);
  const std::string text = override_text.substr(equals + 1);

  std::optional<json> value = parse_value(text);
  if (!value && is_bare_word(text)) value = text;
  if (!value)
    fail(fmt::format("--set '{}': '{}' is not a TOML value; quote strings, for example --set 'run.out=\"my run\"'",
                     override_text, text));

  json* node = &root;
  for (std::size_t begin = 0; begin <= path.size();) {
    const std::size_t dot = std::min(path.find('.', begin), path.size());
    const std::string part = path.substr(begin, dot - begin);
    if (part.empty()) fail(fmt::format("--set '{}': '{}' has an empty part between dots", override_text, path));
    if (node->is_array()) {
      const std::optional<std::size_t> index = as_index(part);
      if (!index || *index >= node->size())
        fail(fmt::format("--set '{}': '{}' must be an index from 0 to {}", override_text, part,
                         static_cast<std::int64_t>(node->size()) - 1));
      node = &(*node)[*index];
    } else if (node->is_object() || node->is_null()) {
      node = &(*node)[part];
    } else {
      fail(fmt::format("--set '{}': the key before '{}' holds a value, not a section", override_text, part));
    }
    begin = dot + 1;
  }
  *node = std::move(*value);
}

}  // namespace moba::lm
