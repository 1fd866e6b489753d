#include "lm/config/reader.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "moba/error.h"

namespace moba::lm {
namespace {

using nlohmann::json;

const json kNull;

std::string join(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

}  // namespace

SectionReader::SectionReader(const json& section, std::string source, std::string name)
    : section_(section), source_(std::move(source)), name_(std::move(name)) {
  if (!section_.is_object() && !section_.is_null())
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: {} = {}: must be a section (a table of keys)", source_, name_, section_.dump()));
}

std::string SectionReader::full_name(const std::string& key) const {
  return name_.empty() ? key : name_ + "." + key;
}

void SectionReader::fail(const std::string& key, const std::string& rule) const {
  const bool present = section_.is_object() && section_.contains(key);
  const std::string value = present ? " = " + section_.at(key).dump() : "";
  throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: {}{}: {}", source_, full_name(key), value, rule));
}

bool SectionReader::has(const std::string& key) const {
  return section_.is_object() && section_.contains(key);
}

const json* SectionReader::find(const std::string& key, bool required) {
  asked_.insert(key);
  if (has(key)) return &section_.at(key);
  if (required) fail(key, "is required and missing");
  return nullptr;
}

std::int64_t SectionReader::integer(const std::string& key, std::optional<std::int64_t> fallback, std::int64_t low,
                                    std::int64_t high) {
  const json* value = find(key, !fallback.has_value());
  if (!value) return *fallback;
  if (!value->is_number_integer()) fail(key, "must be a whole number");
  const std::int64_t number = value->get<std::int64_t>();
  if (number < low || number > high) {
    fail(key,
         high == kLargest ? fmt::format("must be at least {}", low) : fmt::format("must be from {} to {}", low, high));
  }
  return number;
}

double SectionReader::number(const std::string& key, std::optional<double> fallback, double low, double high) {
  const json* value = find(key, !fallback.has_value());
  if (!value) return *fallback;
  if (!value->is_number()) fail(key, "must be a number");
  const double number = value->get<double>();
  if (!std::isfinite(number) || number < low || number > high)
    fail(key, fmt::format("must be from {} to {}", low, high));
  return number;
}

bool SectionReader::boolean(const std::string& key, bool fallback) {
  const json* value = find(key, false);
  if (!value) return fallback;
  if (!value->is_boolean()) fail(key, "must be true or false");
  return value->get<bool>();
}

std::string SectionReader::text(const std::string& key, std::optional<std::string> fallback) {
  const json* value = find(key, !fallback.has_value());
  if (!value) return *fallback;
  if (!value->is_string()) fail(key, "must be a string");
  return value->get<std::string>();
}

std::string SectionReader::choice(const std::string& key, std::optional<std::string> fallback,
                                  const std::vector<std::string>& allowed) {
  const std::string value = text(key, std::move(fallback));
  if (std::find(allowed.begin(), allowed.end(), value) == allowed.end()) fail(key, "must be one of " + join(allowed));
  return value;
}

std::vector<std::string> SectionReader::texts(const std::string& key) {
  const json* value = find(key, false);
  std::vector<std::string> list;
  if (!value) return list;
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array()) fail(key, "must be a list of strings");
  for (const json& entry : *value) {
    if (!entry.is_string()) fail(key, "must be a list of strings");
    list.push_back(entry.get<std::string>());
  }
  return list;
}

const json& SectionReader::raw(const std::string& key) {
  const json* value = find(key, false);
  return value ? *value : kNull;
}

void SectionReader::refuse_unknown_keys() const {
  if (!section_.is_object()) return;
  for (const auto& [key, value] : section_.items()) {
    if (asked_.count(key)) continue;
    fail(key, fmt::format("unknown key; {} knows: {}", name_.empty() ? "the file" : "[" + name_ + "]",
                          join({asked_.begin(), asked_.end()})));
  }
}

}  // namespace moba::lm
