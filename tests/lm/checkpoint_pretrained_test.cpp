#include "lm/checkpoint/pretrained.h"

#include <nlohmann/json.hpp>

#include "lm/checkpoint/safetensors.h"
#include "lm/util/files.h"
#include "model_support.h"

namespace moba::lm {
namespace {

using nlohmann::json;
using testing::expect_error;
using testing::TempFolder;

Model tiny_model(const ModelConfig& config) {
  Model model(config);
  model->init_weights(1);
  return model;
}

/// A saved tiny model, and ways to spoil it.
class Pretraineds : public ::testing::Test {
 protected:
  void SetUp() override { save_pretrained(directory(), tiny_model(config_), config_, torch::kFloat32); }

  std::filesystem::path directory() const { return folder_ / "model"; }
  void load() const { load_pretrained(directory(), torch::kCPU, torch::kFloat32); }
  void change_weights(const std::function<void(NamedTensors&)>& change) const {
    NamedTensors tensors = read_safetensors(directory() / "model.safetensors");
    change(tensors);
    write_safetensors(directory() / "model.safetensors", tensors);
  }
  void change_config(const std::function<void(json&)>& change) const {
    json config = json::parse(read_file(directory() / "config.json"));
    change(config);
    write_file_atomically(directory() / "config.json", config.dump());
  }

  TempFolder folder_;
  ModelConfig config_ = testing::tiny_config();
};

void expect_same_weights(const Model& a, const Model& b) {
  const auto ours = a->named_parameters(), theirs = b->named_parameters();
  ASSERT_EQ(ours.size(), theirs.size());
  for (const auto& item : ours) EXPECT_TRUE(torch::equal(item.value(), theirs[item.key()])) << item.key();
}

TEST_F(Pretraineds, SaveThenLoadIsBitEqual) {
  const Pretrained loaded = load_pretrained(directory(), torch::kCPU, torch::kFloat32);
  expect_same_weights(loaded.model, tiny_model(config_));
  EXPECT_EQ(to_json(loaded.config), to_json(config_));
  EXPECT_EQ(loaded.tokenizer->vocab_size(), 256);
}

TEST_F(Pretraineds, WeightsInAnotherDtype) {
  Model model = tiny_model(config_);
  save_pretrained(directory(), model, config_, torch::kBFloat16);
  const Pretrained loaded = load_pretrained(directory(), torch::kCPU, torch::kBFloat16);
  model->to(torch::kBFloat16);
  expect_same_weights(loaded.model, model);
  EXPECT_EQ(loaded.model->compute_dtype(), torch::kBFloat16);
}

TEST_F(Pretraineds, ShardsReplaceASingleFileAndTheOtherWayRound) {
  const auto names = [&] {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(directory())) found.push_back(entry.path().filename());
    std::sort(found.begin(), found.end());
    return found;
  };
  save_pretrained(directory(), tiny_model(config_), config_, torch::kFloat32, 30'000);
  EXPECT_TRUE(std::filesystem::exists(directory() / "model.safetensors.index.json"));
  EXPECT_FALSE(std::filesystem::exists(directory() / "model.safetensors"));
  expect_same_weights(load_pretrained(directory(), torch::kCPU, torch::kFloat32).model, tiny_model(config_));
  save_pretrained(directory(), tiny_model(config_), config_, torch::kFloat32);
  EXPECT_EQ(names(), (std::vector<std::string>{"config.json", "model.safetensors"}));
}

TEST_F(Pretraineds, MissingUnexpectedAndMisshapenTensors) {
  change_weights([](NamedTensors& tensors) { tensors.erase("model.layers.1.mlp.up_proj.weight"); });
  expect_error([&] { load(); }, {directory().string(), "model.layers.1.mlp.up_proj.weight", "missing"});
  change_weights([](NamedTensors& tensors) { tensors["model.layers.1.mlp.up_proj.weight"] = torch::zeros({48, 31}); });
  expect_error([&] { load(); }, {"model.layers.1.mlp.up_proj.weight", "[48, 31]", "[48, 32]"});
  change_weights([](NamedTensors& tensors) {
    tensors["model.layers.1.mlp.up_proj.weight"] = torch::zeros({48, 32}, torch::kInt64);
  });
  expect_error([&] { load(); }, {"model.layers.1.mlp.up_proj.weight", "Long"});
  change_weights([](NamedTensors& tensors) {
    tensors["model.layers.1.mlp.up_proj.weight"] = torch::zeros({48, 32});
    tensors["model.layers.2.extra"] = torch::zeros({1});
  });
  expect_error([&] { load(); }, {"model.layers.2.extra"});
}

TEST_F(Pretraineds, RedundantTensorsOfOtherPrograms) {
  change_weights([](NamedTensors& tensors) {
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch::zeros({4});
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone();
  });
  EXPECT_NO_THROW(load());
  change_weights([](NamedTensors& tensors) { tensors["lm_head.weight"] += 1; });
  expect_error([&] { load(); }, {"lm_head.weight", "tie_word_embeddings"});
}

TEST_F(Pretraineds, ConfigAndWeightsMustAgree) {
  change_config([](json& config) { config["intermediate_size"] = 64; });
  expect_error([&] { load(); }, {"mlp.gate_proj.weight", "[48, 32]", "[64, 32]"});
}

TEST_F(Pretraineds, AModelLargerThanTheMachineIsRefused) {
  change_config([](json& config) {
    config["hidden_size"] = 65536;
    config["intermediate_size"] = 65536;
    config["num_hidden_layers"] = 60;
  });
  expect_error([&] { load(); }, {"parameters", "GB"});
}

TEST_F(Pretraineds, BrokenConfigs) {
  write_file_atomically(directory() / "config.json", "{\"model_type\": ");
  expect_error([&] { load(); }, {(directory() / "config.json").string(), "not valid JSON"});
  std::filesystem::remove(directory() / "config.json");
  expect_error([&] { load(); }, {(directory() / "config.json").string(), "no such file"});
}

TEST_F(Pretraineds, DirectoriesThatAreNone) {
  expect_error([&] { load_config(folder_ / "absent"); }, {(folder_ / "absent").string(), "no such directory"});
  expect_error([&] { load_config(directory() / "config.json"); }, {"not a directory"});
  std::filesystem::remove(directory() / "model.safetensors");
  expect_error([&] { load(); }, {directory().string(), "model.safetensors"});
}

TEST_F(Pretraineds, BrokenIndexes) {
  std::filesystem::rename(directory() / "model.safetensors", directory() / "part.safetensors");
  const auto index = [&](const json& weight_map) {
    write_file_atomically(directory() / "model.safetensors.index.json", json({{"weight_map", weight_map}}).dump());
  };
  index({{"model.norm.weight", "absent.safetensors"}});
  expect_error([&] { load(); }, {"absent.safetensors", "no such file"});
  index({{"model.norm.weight", "../model/part.safetensors"}});
  expect_error([&] { load(); }, {"index.json", "../model/part.safetensors"});
  index({{"model.norm.weight", 3}});
  expect_error([&] { load(); }, {"index.json", "model.norm.weight"});
  index({{"model.other.weight", "part.safetensors"}});
  expect_error([&] { load(); }, {"index.json", "model.other.weight", "part.safetensors"});
  index({{"model.norm.weight", "part.safetensors"}});
  EXPECT_NO_THROW(load());
}

TEST_F(Pretraineds, ASentencePieceModelNeedsItsTokenizer) {
  change_config([](json& config) { config["moba"]["tokenizer"] = "sentencepiece"; });
  expect_error([&] { load(); }, {"tokenizer.model", "no such file"});
}

TEST(PreferredDtype, IsOneThatModelsRunIn) {
  EXPECT_EQ(preferred_dtype(torch::kCUDA), torch::kBFloat16);
  const torch::Dtype cpu = preferred_dtype(torch::kCPU);
  EXPECT_TRUE(cpu == torch::kBFloat16 || cpu == torch::kFloat32);
}

}  // namespace
}  // namespace moba::lm
