// Typed reading of a JSON object: every key is asked for by name, and what nobody asked for is an error.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace moba::lm {

/// One section of a config. Every error names the file, the key, the value found and the rule it breaks.
class SectionReader {
 public:
  /// `section` must be an object or null (an absent section: every key takes its default).
  SectionReader(const nlohmann::json& section, std::string source, std::string name);

  bool has(const std::string& key) const;

  std::int64_t integer(const std::string& key, std::optional<std::int64_t> fallback, std::int64_t low,
                       std::int64_t high = kLargest);
  double number(const std::string& key, std::optional<double> fallback, double low, double high);
  bool boolean(const std::string& key, bool fallback);
  std::string text(const std::string& key, std::optional<std::string> fallback);
  std::string choice(const std::string& key, std::optional<std::string> fallback,
                     const std::vector<std::string>& allowed);
  std::vector<std::string> texts(const std::string& key);
  /// A sub-section or array as it stands; null when absent.
  const nlohmann::json& raw(const std::string& key);

  /// Error for the first key that was never asked for, with the keys this section knows.
  void refuse_unknown_keys() const;

  /// Throws: "FILE: section.key = VALUE: RULE".
  [[noreturn]] void fail(const std::string& key, const std::string& rule) const;

  const std::string& source() const { return source_; }
  std::string full_name(const std::string& key) const;

  static constexpr std::int64_t kLargest = std::int64_t{1} << 50;

 private:
  const nlohmann::json* find(const std::string& key, bool required);

  const nlohmann::json& section_;
  std::string source_, name_;
  std::set<std::string> asked_;
};

}  // namespace moba::lm
