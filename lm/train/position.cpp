#include "lm/train/position.h"

#include <fmt/core.h>

#include "lm/util/fail.h"

namespace moba::lm {
namespace {

using nlohmann::json;

constexpr int kFormat = 1;

const json& member(const json& object, const char* key, const std::string& where) {
  if (!object.is_object() || !object.contains(key)) fail(where, fmt::format("key '{}' is missing", key));
  return object.at(key);
}

}  // namespace

json to_json(const TrainPosition& position) {
  return {{"format", kFormat},          {"step", position.step},
          {"seed", position.seed},      {"schedule", position.schedule},
          {"config", position.config},  {"model", position.model},
          {"figures", position.figures}};
}

TrainPosition parse_position(const json& object, const std::string& where) {
  const json& format = member(object, "format", where);
  if (!format.is_number_integer() || format.get<std::int64_t>() != kFormat)
    fail(where, fmt::format("format = {}: this program reads {}", format.dump(), kFormat));
  const json& step = member(object, "step", where);
  if (!step.is_number_integer() || step.get<std::int64_t>() < 0)
    fail(where, fmt::format("step = {}: must be a whole number from 0", step.dump()));
  const json& seed = member(object, "seed", where);
  if (!seed.is_number_unsigned()) fail(where, fmt::format("seed = {}: must be a whole number from 0", seed.dump()));
  return {step.get<std::int64_t>(),        seed.get<std::uint64_t>(),      member(object, "schedule", where),
          member(object, "config", where), member(object, "model", where), member(object, "figures", where)};
}

}  // namespace moba::lm
