// The attention plan: which method each layer uses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "moba/options.h"

namespace moba::lm {

/// One entry a layer; empty means "no plan": every layer is full.
struct AttentionPlan {
  std::vector<AttentionOptions> layers;

  bool empty() const { return layers.empty(); }
  bool has_moba() const;
  /// The method of a layer (full for an empty plan).
  AttentionOptions layer(std::int64_t index) const;
  /// "moba(64,8) x7 + full x1"
  std::string summary() const;
  friend bool operator==(const AttentionPlan&, const AttentionPlan&);
};

/// `options` in every layer but the last `last_n_full`, which are full.
AttentionPlan uniform_plan(std::int64_t layers, const AttentionOptions& options, std::int64_t last_n_full);

/// {"layers": [{"kind": "moba", "block_size": 64, "top_k": 8}, …, {"kind": "full"}]}; `where` names it in errors.
AttentionPlan parse_plan(const nlohmann::json& json, std::int64_t layers, const std::string& where);
nlohmann::json to_json(const AttentionPlan& plan);

}  // namespace moba::lm
