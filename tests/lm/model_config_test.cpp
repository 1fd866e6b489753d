#include "lm/model/config.h"

#include <nlohmann/json.hpp>

#include "lm/util/json_object.h"
#include "model_support.h"

namespace moba::lm {
namespace {

using nlohmann::json;
using testing::expect_error;

json valid() {
  return json::parse(R"({"model_type": "llama", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": false})");
}

ModelConfig parse(const json& content) {
  return parse_model_config(content, "config.json");
}

void expect_refused(const std::string& key, const json& value, const std::vector<std::string>& parts) {
  json content = valid();
  content[key] = value;
  std::vector<std::string> all{"config.json", key};
  all.insert(all.end(), parts.begin(), parts.end());
  expect_error([&] { parse(content); }, all);
}

TEST(ModelConfig, ReadsAHuggingFaceConfig) {
  const ModelConfig config = parse(valid());
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.num_key_value_heads, 2);
  EXPECT_EQ(config.rope_theta, 500000.0);
  EXPECT_FALSE(config.qk_norm);
  EXPECT_EQ(config.tokenizer, "sentencepiece");
  EXPECT_TRUE(config.plan.empty());
  // Embedding and head, then 3 layers of q, o (64x64), k, v (64x32), three MLP matrices, two norms; the final norm.
  EXPECT_EQ(config.parameter_count(), 2 * 97 * 64 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64) + 64);
}

TEST(ModelConfig, DefaultsAreThoseOfTransformers) {
  json content = valid();
  for (const char* key : {"num_key_value_heads", "rope_theta", "tie_word_embeddings", "rms_norm_eps"})
    content.erase(key);
  const ModelConfig config = parse(content);
  EXPECT_EQ(config.num_key_value_heads, 4);
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  content["model_type"] = "qwen3";
  EXPECT_EQ(parse(content).head_dim, 128);
  EXPECT_TRUE(parse(content).qk_norm);
}

TEST(ModelConfig, BothSpellingsOfRope) {
  const json llama3 = {
      {"factor", 8}, {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 64}};
  json old_style = valid(), new_style = valid(), very_old = valid();
  old_style["rope_scaling"] = llama3;
  old_style["rope_scaling"]["rope_type"] = "llama3";
  new_style.erase("rope_theta");
  new_style["rope_parameters"] = llama3;
  new_style["rope_parameters"]["rope_type"] = "llama3";
  new_style["rope_parameters"]["rope_theta"] = 500000.0;
  for (const json& content : {old_style, new_style}) {
    const ModelConfig config = parse(content);
    EXPECT_EQ(config.rope_theta, 500000.0);
    EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kLlama3);
    EXPECT_EQ(config.rope_scaling.factor, 8.0);
    EXPECT_EQ(config.rope_scaling.original_max_position_embeddings, 64);
  }
  very_old["rope_scaling"] = {{"type", "linear"}, {"factor", 2.0}};
  EXPECT_EQ(parse(very_old).rope_scaling.type, RopeScaling::Type::kLinear);
}

TEST(ModelConfig, WhatIsWrittenIsReadBack) {
  ModelConfig config = testing::tiny_config();
  config.rope_scaling = {RopeScaling::Type::kLlama3, 4.0, 1.0, 2.0, 128};
  AttentionOptions moba;
  moba.block_size = 64;
  moba.top_k = 8;
  config.plan = uniform_plan(2, moba, 1);
  const ModelConfig again = parse(json::parse(to_json(config).dump()));
  EXPECT_EQ(to_json(again), to_json(config));
  EXPECT_EQ(again.plan, config.plan);
  EXPECT_EQ(again.tokenizer, "bytes");
  config.qk_norm = true;
  EXPECT_EQ(parse(to_json(config)).model_type, "qwen3");
}

TEST(ModelConfig, MissingAndMistypedKeys) {
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}) {
    json content = valid();
    content.erase(key);
    expect_error([&] { parse(content); }, {"config.json", key, "missing"});
    expect_refused(key, "64", {"\"64\"", "integer"});
    expect_refused(key, 64.5, {"64.5", "integer"});
    expect_refused(key, -3, {"-3"});
    expect_refused(key, 0, {});
    expect_refused(key, json::array({1}), {"integer"});
  }
  expect_refused("rope_theta", "big", {"number"});
  expect_refused("tie_word_embeddings", 1, {"true or false"});
  expect_refused("rms_norm_eps", -1.0, {"-1"});
  expect_error([] { parse(json::array()); }, {"config.json", "not a JSON object"});
}

TEST(ModelConfig, AbsurdSizesAreRefused) {
  expect_refused("hidden_size", 1000000000000, {"1000000000000"});
  expect_refused("num_hidden_layers", 18446744073709551615ULL, {"18446744073709551615"});
  json content = valid();  // every number within its own bounds, and still far too large together
  content["hidden_size"] = 1 << 20;
  content["intermediate_size"] = 1 << 24;
  content["num_hidden_layers"] = 4096;
  content["head_dim"] = 64;
  expect_error([&] { parse(content); }, {"config.json", "hidden_size=1048576", "parameters"});
}

TEST(ModelConfig, UnsupportedKeysAreNamed) {
  expect_refused("model_type", "mamba", {"mamba", "llama, qwen3"});
  expect_refused("attention_bias", true, {"not supported"});
  expect_refused("mlp_bias", true, {"not supported"});
  expect_refused("use_sliding_window", true, {"not supported"});
  expect_refused("hidden_act", "gelu", {"gelu", "silu"});
  expect_refused("quantization_config", {{"bits", 4}}, {"not supported"});
  expect_refused("layer_types", {"full_attention", "sliding_attention"}, {"full_attention"});
  expect_refused("num_key_value_heads", 3, {"divide"});
  expect_refused("head_dim", 512, {"256"});
  json yarn = valid();
  yarn["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 4.0}};
  expect_error([&] { parse(yarn); }, {"rope_scaling", "yarn", "llama3"});
  json partial = valid();
  partial["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e4}, {"partial_rotary_factor", 0.5}};
  expect_error([&] { parse(partial); }, {"partial_rotary_factor"});
}

TEST(ModelConfig, OurKeyIsChecked) {
  expect_refused("moba", {{"tokenizer", "words"}}, {"words", "bytes, sentencepiece"});
  expect_refused("moba", {{"tokeniser", "bytes"}}, {"tokeniser"});
  expect_refused("moba", {{"tokenizer", "bytes"}}, {"256"});
  expect_refused("moba", {{"plan", {{"layers", json::array()}}}}, {"plan", "3 layers"});
}

TEST(AttentionPlan, UniformAndSummary) {
  AttentionOptions moba;
  moba.block_size = 64;
  moba.top_k = 8;
  const AttentionPlan plan = uniform_plan(8, moba, 1);
  EXPECT_EQ(plan.summary(), "moba(64,8) x7 + full x1");
  EXPECT_TRUE(plan.has_moba());
  EXPECT_EQ(plan.layer(7).kind, Kind::kFull);
  EXPECT_FALSE(AttentionPlan{}.has_moba());
  EXPECT_EQ(AttentionPlan{}.layer(99).kind, Kind::kFull);
  EXPECT_EQ(AttentionPlan{}.summary(), "full");
  expect_error([&] { plan.layer(8); }, {"8"});
  expect_error([&] { uniform_plan(8, moba, 9); }, {"last_n_full=9"});
}

TEST(AttentionPlan, EveryOptionOfTheChoiceGoesRoundAndNamesItself) {
  const json content = {{"layers",
                         {{{"kind", "moba"},
                           {"block_size", 64},
                           {"top_k", 8},
                           {"force_previous", true},
                           {"sink_blocks", 2},
                           {"share", "group"},
                           {"share_score", "max"},
                           {"representative_dtype", "float32"}},
                          {{"kind", "moba"}, {"block_size", 32}, {"top_k", 4}, {"sink_blocks", 3}},
                          {{"kind", "moba"}, {"block_size", 32}, {"top_k", 4}}}}};
  const AttentionPlan plan = parse_plan(content, 3, "file: plan");
  EXPECT_EQ(to_json(plan), content);
  EXPECT_EQ(plan.summary(),
            "moba(64,8,previous,2 sinks,group max,float32 means) x1 + moba(32,4,3 sinks) x1 + moba(32,4) x1");
  EXPECT_EQ(plan.layer(0).share, Share::kGroup);
  const auto refuse = [&](const char* key, const json& value, std::vector<std::string> parts) {
    json changed = content;
    changed["layers"][1][key] = value;
    parts.insert(parts.end(), {"file: plan", "layers[1]"});
    expect_error([&] { parse_plan(changed, 3, "file: plan"); }, parts);
  };
  refuse("sink_blocks", 4, {"sink_blocks"});
  refuse("force_previous", true, {"sink_blocks"});  // three sinks leave no slot
  refuse("share", "row", {"share", "'row'", "head, group, layer"});
  refuse("share_score", "mean", {"share_score", "sum_prob"});
  refuse("representative_dtype", "float16", {"representative_dtype", "input, float32"});
}

TEST(AttentionPlan, JsonRoundTripAndErrors) {
  const json content =
      json::parse(R"({"layers": [{"kind": "moba", "block_size": 64, "top_k": 1, "compat_topk1_full": true},
    {"kind": "window", "window": 128, "sink": 4}, {"kind": "full"}]})");
  const AttentionPlan plan = parse_plan(content, 3, "file: plan");
  EXPECT_EQ(to_json(plan), content);
  EXPECT_EQ(plan.summary(), "moba(64,1) x1 + window(128,4) x1 + full x1");
  const auto refuse = [&](const json& layer, const std::vector<std::string>& parts) {
    json changed = content;
    changed["layers"][1] = layer;
    std::vector<std::string> all{"file: plan", "layers[1]"};
    all.insert(all.end(), parts.begin(), parts.end());
    expect_error([&] { parse_plan(changed, 3, "file: plan"); }, all);
  };
  refuse({{"kind", "sliding"}}, {"sliding"});
  refuse({{"kind", "moba"}, {"block_size", 0}, {"top_k", 1}}, {"block_size=0"});
  refuse({{"kind", "moba"}, {"block_size", 64}}, {"top_k", "missing"});
  refuse({{"kind", "full"}, {"top_k", 3}}, {"top_k", "unknown key"});
  refuse("full", {"not a JSON object"});
  expect_error([&] { parse_plan(content, 4, "file: plan"); }, {"file: plan", "4 layers"});
}

TEST(ParseJson, NamesTheSource) {
  expect_error([] { parse_json("{\"a\": ", "some.json"); }, {"some.json", "not valid JSON"});
  expect_error([] { parse_json("", "some.json"); }, {"some.json"});
  expect_error([] { parse_json(R"({"a": {"b": 1, "b": 2}})", "some.json"); }, {"some.json", "\"b\"", "twice"});
  EXPECT_NO_THROW(parse_json(R"([{"b": 1}, {"b": 2}])", "some.json"));
}

}  // namespace
}  // namespace moba::lm
