#include "lm/util/json_object.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "moba/error.h"

namespace moba::lm {

using nlohmann::json;

namespace {

/// The value as JSON, cut to a length that a message can hold.
std::string shown(const json& value) {
  constexpr std::size_t kLongest = 60;
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kLongest) text = text.substr(0, kLongest) + "…";
  return text;
}

}  // namespace

json parse_json(std::string_view text, const std::string& source) {
  constexpr int kDeepest = 64;              // writing and comparing a value takes stack for each level
  std::vector<std::set<std::string>> keys;  // of the objects that are open; an array opens an empty set
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
      case json::parse_event_t::array_start:
        if (depth >= kDeepest) {
          throw Error(ErrorCode::kInvalidArgument,
                      fmt::format("{}: objects and lists stand within each other more than {} deep", source, kDeepest));
        }
        keys.emplace_back();
        break;
      case json::parse_event_t::object_end:
      case json::parse_event_t::array_end: keys.pop_back(); break;
      case json::parse_event_t::key:
        if (!keys.back().insert(parsed.get<std::string>()).second) {
          throw Error(ErrorCode::kInvalidArgument,
                      fmt::format("{}: the key {} stands twice in one object", source, shown(parsed)));
        }
        break;
      case json::parse_event_t::value: break;
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), watch);
  } catch (const json::exception& error) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{} is not valid JSON: {}", source, error.what()));
  }
}

JsonObject::JsonObject(const json& object, std::string where) : json_(object), where_(std::move(where)) {
  if (!object.is_object()) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: {} is not a JSON object", where_, shown(object)));
  }
}

bool JsonObject::has(const std::string& key) const {
  const auto found = json_.find(key);
  return found != json_.end() && !found->is_null();
}

const json& JsonObject::at(const std::string& key) const {
  if (!has(key)) throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: the key {} is missing", where_, key));
  return *json_.find(key);
}

JsonObject JsonObject::object(const std::string& key) const {
  return JsonObject(at(key), fmt::format("{}: {}", where_, key));
}

void JsonObject::fail(const std::string& key, const std::string& problem) const {
  const auto found = json_.find(key);
  const std::string value = found == json_.end() ? std::string("(absent)") : shown(*found);
  throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: {}={} {}", where_, key, value, problem));
}

std::int64_t JsonObject::integer(const std::string& key, std::int64_t min, std::int64_t max) const {
  const json& value = at(key);
  const std::string rule = fmt::format("must be an integer from {} to {}", min, max);
  std::int64_t result = 0;
  if (value.is_number_unsigned()) {
    if (value.get<std::uint64_t>() > static_cast<std::uint64_t>(max)) fail(key, rule);
    result = static_cast<std::int64_t>(value.get<std::uint64_t>());
  } else if (value.is_number_integer()) {
    result = value.get<std::int64_t>();
  } else {
    fail(key, rule);
  }
  if (result < min || result > max) fail(key, rule);
  return result;
}

std::int64_t JsonObject::integer_or(const std::string& key, std::int64_t fallback, std::int64_t min,
                                    std::int64_t max) const {
  return has(key) ? integer(key, min, max) : fallback;
}

double JsonObject::number(const std::string& key, double min, double max) const {
  const json& value = at(key);
  const std::string rule = fmt::format("must be a number from {} to {}", min, max);
  if (!value.is_number()) fail(key, rule);
  const double result = value.get<double>();
  if (!(result >= min && result <= max)) fail(key, rule);
  return result;
}

double JsonObject::number_or(const std::string& key, double fallback, double min, double max) const {
  return has(key) ? number(key, min, max) : fallback;
}

bool JsonObject::boolean_or(const std::string& key, bool fallback) const {
  if (!has(key)) return fallback;
  const json& value = at(key);
  if (!value.is_boolean()) fail(key, "must be true or false");
  return value.get<bool>();
}

std::string JsonObject::string_or(const std::string& key, const std::string& fallback) const {
  if (!has(key)) return fallback;
  const json& value = at(key);
  if (!value.is_string()) fail(key, "must be a string");
  return value.get<std::string>();
}

void JsonObject::only(std::initializer_list<std::string_view> known) const {
  for (const auto& item : json_.items()) {
    if (std::find(known.begin(), known.end(), item.key()) == known.end()) {
      throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: unknown key {}; known: {}", where_, shown(item.key()),
                                                           fmt::join(known.begin(), known.end(), ", ")));
    }
  }
}

}  // namespace moba::lm
