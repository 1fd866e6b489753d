// Reading JSON objects key by key, with errors that name the file, the key, the value and the rule.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moba::lm {

/// Parses text; Error names `source`, the place and the problem. A key that stands twice in one object is an error, and
/// so is nesting of more than 64 levels.
nlohmann::json parse_json(std::string_view text, const std::string& source);

/// A view of one JSON object. `where` begins every message ("DIR/config.json" or "DIR/config.json: moba").
class JsonObject {
 public:
  /// Error when `json` is not an object.
  JsonObject(const nlohmann::json& json, std::string where);

  /// Present and not null.
  bool has(const std::string& key) const;
  /// The value, or an Error "missing".
  const nlohmann::json& at(const std::string& key) const;
  JsonObject object(const std::string& key) const;

  std::int64_t integer(const std::string& key, std::int64_t min, std::int64_t max) const;
  std::int64_t integer_or(const std::string& key, std::int64_t fallback, std::int64_t min, std::int64_t max) const;
  double number_or(const std::string& key, double fallback, double min, double max) const;
  double number(const std::string& key, double min, double max) const;
  bool boolean_or(const std::string& key, bool fallback) const;
  std::string string_or(const std::string& key, const std::string& fallback) const;

  /// Error naming the first key that is not in `known`.
  void only(std::initializer_list<std::string_view> known) const;
  /// Throws Error "where: key=value problem".
  [[noreturn]] void fail(const std::string& key, const std::string& problem) const;
  const std::string& where() const { return where_; }

 private:
  const nlohmann::json& json_;
  std::string where_;
};

}  // namespace moba::lm
