// Where a training run stands besides its tensors, and its file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace moba::lm {

/// The random state is the seed and the step: data is drawn by counter.
struct TrainPosition {
  std::int64_t step = 0;    // steps done
  std::uint64_t seed = 0;   // of the data
  nlohmann::json schedule;  // schedule_to_json of the run
  nlohmann::json config;    // the TOML file after overrides
  nlohmann::json model;     // config.json of the model
  nlohmann::json figures;   // FigureSums::state() of the steps since the last line
};

nlohmann::json to_json(const TrainPosition& position);
/// Error names `where` and the key.
TrainPosition parse_position(const nlohmann::json& json, const std::string& where);

}  // namespace moba::lm
