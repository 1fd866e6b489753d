#include "lm/model/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "lm/util/json_object.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

using nlohmann::json;

constexpr std::int64_t kLargestCount = std::int64_t{1} << 40;

bool same(const AttentionOptions& a, const AttentionOptions& b) {
  if (a.kind != b.kind || a.softmax_scale != b.softmax_scale) return false;
  switch (a.kind) {
    case Kind::kFull: return true;
    case Kind::kWindow: return a.window == b.window && a.sink == b.sink;
    case Kind::kMoba:
      return a.block_size == b.block_size && a.top_k == b.top_k && a.compat_topk1_full == b.compat_topk1_full &&
             a.force_previous == b.force_previous && a.sink_blocks == b.sink_blocks && a.share == b.share &&
             a.share_score == b.share_score && a.representative_dtype == b.representative_dtype;
  }
  return false;
}

std::string name_of_moba(const AttentionOptions& options) {
  std::string text = fmt::format("moba({},{}", options.block_size, options.top_k);
  if (options.force_previous) text += ",previous";
  if (options.sink_blocks > 0) text += fmt::format(",{} sinks", options.sink_blocks);
  if (options.share != Share::kHead) {
    text += fmt::format(",{} {}", moba::name_of(options.share), moba::name_of(options.share_score));
  }
  if (options.representative_dtype != RepresentativeDType::kInput) {
    text += fmt::format(",{} means", moba::name_of(options.representative_dtype));
  }
  return text + ")";
}

AttentionOptions parse_layer(const JsonObject& layer) {
  AttentionOptions options;
  options.kind = kind_from_name(layer.string_or("kind", ""));
  options.softmax_scale = layer.number_or("softmax_scale", 0.0, 0.0, 1e6);
  switch (options.kind) {
    case Kind::kFull: layer.only({"kind", "softmax_scale"}); break;
    case Kind::kWindow:
      layer.only({"kind", "softmax_scale", "window", "sink"});
      options.window = layer.integer("window", 1, kLargestCount);
      options.sink = layer.integer_or("sink", 0, 0, kLargestCount);
      break;
    case Kind::kMoba:
      layer.only({"kind", "softmax_scale", "block_size", "top_k", "compat_topk1_full", "force_previous", "sink_blocks",
                  "share", "share_score", "representative_dtype"});
      options.block_size = layer.integer("block_size", 1, kLargestCount);
      options.top_k = layer.integer("top_k", 1, kLargestCount);
      options.compat_topk1_full = layer.boolean_or("compat_topk1_full", false);
      options.force_previous = layer.boolean_or("force_previous", false);
      if (options.force_previous && options.top_k == 1) {
        layer.fail("force_previous", "the previous block takes a slot beside the own one: top_k must be at least 2");
      }
      options.sink_blocks = layer.integer_or("sink_blocks", 0, 0, options.top_k - 1 - (options.force_previous ? 1 : 0));
      options.share = share_from_name(layer.string_or("share", "head"));
      options.share_score = share_score_from_name(layer.string_or("share_score", "sum_logit"));
      options.representative_dtype = representative_dtype_from_name(layer.string_or("representative_dtype", "input"));
      break;
  }
  return options;
}

json layer_to_json(const AttentionOptions& options) {
  json layer = {{"kind", moba::name_of(options.kind)}};
  if (options.softmax_scale != 0.0) layer["softmax_scale"] = options.softmax_scale;
  switch (options.kind) {
    case Kind::kFull: break;
    case Kind::kWindow:
      layer["window"] = options.window;
      if (options.sink != 0) layer["sink"] = options.sink;
      break;
    case Kind::kMoba:
      layer["block_size"] = options.block_size;
      layer["top_k"] = options.top_k;
      if (options.compat_topk1_full) layer["compat_topk1_full"] = true;
      if (options.force_previous) layer["force_previous"] = true;
      if (options.sink_blocks != 0) layer["sink_blocks"] = options.sink_blocks;
      if (options.share != Share::kHead) layer["share"] = moba::name_of(options.share);
      if (options.share_score != ShareScore::kSumLogit) layer["share_score"] = moba::name_of(options.share_score);
      if (options.representative_dtype != RepresentativeDType::kInput) {
        layer["representative_dtype"] = moba::name_of(options.representative_dtype);
      }
      break;
  }
  return layer;
}

AttentionOptions full_attention() {
  AttentionOptions options;
  options.kind = Kind::kFull;
  return options;
}

}  // namespace

std::string name_of(const AttentionOptions& options) {
  switch (options.kind) {
    case Kind::kFull: return "full";
    case Kind::kWindow:
      return options.sink > 0 ? fmt::format("window({},{})", options.window, options.sink)
                              : fmt::format("window({})", options.window);
    case Kind::kMoba: return name_of_moba(options);
  }
  return {};
}

bool AttentionPlan::has_moba() const {
  return std::any_of(layers.begin(), layers.end(), [](const auto& layer) { return layer.kind == Kind::kMoba; });
}

AttentionOptions AttentionPlan::layer(std::int64_t index) const {
  if (empty()) return full_attention();
  if (index < 0 || index >= static_cast<std::int64_t>(layers.size())) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("layer index={} is outside the attention plan, which has {} layers", index, layers.size()));
  }
  return layers[static_cast<std::size_t>(index)];
}

std::string AttentionPlan::summary() const {
  if (empty()) return "full";
  std::string text;
  for (std::size_t begin = 0; begin < layers.size();) {
    std::size_t end = begin + 1;
    while (end < layers.size() && same(layers[begin], layers[end])) ++end;
    text += fmt::format("{}{} x{}", text.empty() ? "" : " + ", name_of(layers[begin]), end - begin);
    begin = end;
  }
  return text;
}

bool operator==(const AttentionPlan& a, const AttentionPlan& b) {
  return std::equal(a.layers.begin(), a.layers.end(), b.layers.begin(), b.layers.end(), same);
}

AttentionPlan uniform_plan(std::int64_t layers, const AttentionOptions& options, std::int64_t last_n_full) {
  if (layers < 1) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("layers={}: a model has at least one layer", layers));
  }
  if (last_n_full < 0 || last_n_full > layers) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("last_n_full={} must be from 0 to the number of layers, {}", last_n_full, layers));
  }
  AttentionPlan plan;
  plan.layers.assign(static_cast<std::size_t>(layers - last_n_full), options);
  plan.layers.resize(static_cast<std::size_t>(layers), full_attention());
  return plan;
}

AttentionPlan parse_plan(const json& source, std::int64_t layers, const std::string& where) {
  const JsonObject object(source, where);
  object.only({"layers"});
  const json& list = object.at("layers");
  if (!list.is_array() || static_cast<std::int64_t>(list.size()) != layers) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: layers has {} entries; it must be a list with one entry for each of the {} layers",
                            where, list.is_array() ? list.size() : 0, layers));
  }
  AttentionPlan plan;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string place = fmt::format("{}: layers[{}]", where, i);
    try {
      plan.layers.push_back(parse_layer(JsonObject(list[i], place)));
    } catch (const Error& error) {
      const std::string message = error.what();
      if (message.rfind(place, 0) == 0) throw;
      throw Error(error.code(), fmt::format("{}: {}", place, message));  // kind_from_name does not know the place
    }
  }
  return plan;
}

json to_json(const AttentionPlan& plan) {
  json layers = json::array();
  for (const AttentionOptions& layer : plan.layers) layers.push_back(layer_to_json(layer));
  return {{"layers", layers}};
}

}  // namespace moba::lm
