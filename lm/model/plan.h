// The attention plan: which method each layer uses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "moba/options.h"

namespace moba::lm {

/// One layer's method as a plan's summary names it: "full", "window(128,4)", "moba(64,8)", and what differs from the
/// defaults behind: "moba(64,8,previous,2 sinks,group max,float32 means)".
std::string name_of(const AttentionOptions& options);

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

/// {"layers": [{"kind": "moba", "block_size": 64, "top_k": 8}, …, {"kind": "full"}]}; `where` names it in errors. A
/// layer of kind moba may also have compat_topk1_full, force_previous, sink_blocks, share, share_score and
/// representative_dtype, as AttentionOptions has them.
AttentionPlan parse_plan(const nlohmann::json& json, std::int64_t layers, const std::string& where);
nlohmann::json to_json(const AttentionPlan& plan);

}  // namespace moba::lm
