#include "lm/config/toml.h"

#include <fmt/core.h>
#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

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

// The line of the first character beyond ASCII that stands neither in a string nor in a comment, or 0. TOML has none
// there, but toml++ 3.3 does not refuse them all: U+00A1 to U+0499 reach a branch that it promises the compiler is
// never taken.
std::int64_t line_of_stray_character(std::string_view text) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  std::int64_t line = 1;
  char quote = 0;  // of the string we are in, or 0
  bool multi_line = false;
  for (std::size_t i = text.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool three = (c == '"' || c == '\'') && text.substr(i, 3) == std::string(3, c);
    if (c == '\n') ++line;
    if (quote == 0) {
      if (c == '#') {
        i = std::min(text.find('\n', i), text.size()) - 1;
      } else if (c == '"' || c == '\'') {
        quote = c;
        multi_line = three;
        if (three) i += 2;
      } else if ((static_cast<unsigned char>(c) & 0x80u) != 0) {
        return line;
      }
    } else if (quote == '"' && c == '\\') {
      if (i + 1 < text.size() && text[i + 1] == '\n') ++line;
      ++i;
    } else if (!multi_line && (c == quote || c == '\n')) {
      quote = 0;
    } else if (multi_line && c == quote && three) {
      i += 2;
      for (int more = 0; more < 2 && i + 1 < text.size() && text[i + 1] == quote; ++more) ++i;  // they end the text
      quote = 0;
    }
  }
  return 0;
}

// The value of an override, or nothing when the text is no TOML value.
std::optional<json> parse_value(const std::string& text) {
  if (line_of_stray_character(text) != 0) return std::nullopt;
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
  if (const std::int64_t line = line_of_stray_character(text); line != 0) {
    fail(fmt::format("{}: line {}: not TOML: a character that is not ASCII outside of a string; put it in quotes",
                     source, line));
  }
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
