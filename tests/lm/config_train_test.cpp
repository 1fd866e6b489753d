#include "lm/config/train_config.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "lm/config/toml.h"
#include "train_support.h"

namespace moba::lm {
namespace {

using testing::error_of;

constexpr const char* kConfig = R"(
[run]
out = "runs/x"
[model]
num_hidden_layers = 4
max_position_embeddings = 4096
[data]
train = ["text"]
cache_dir = "cache"
[recall]
fraction = 0.8
[schedule]
steps = 100
[[phase]]
step = 0
sequence_length = 1024
batch_tokens = 8192
attention = {kind = "full"}
[[phase]]
step = 50
sequence_length = 2048
attention = {kind = "moba", block_size = 64, top_k = 8, last_n_full = 1}
)";

TrainConfig with(const std::vector<std::string>& overrides) {
  nlohmann::json root = parse_toml(kConfig, "f.toml");
  for (const std::string& text : overrides) apply_override(root, text);
  return parse_train_config(root, "f.toml");
}

TEST(TrainConfig, ReadsAndInherits) {
  const TrainConfig config = with({});
  EXPECT_EQ(config.run.out, "runs/x");
  EXPECT_EQ(config.model.config.head_dim, 64);
  ASSERT_EQ(config.phases.size(), 2u);
  EXPECT_EQ(config.phases[1].batch_tokens, 8192);
  EXPECT_EQ(config.phases[1].micro_batch_tokens, 8192);
  EXPECT_EQ(config.phases[1].plan.layer(0).block_size, 64);
  EXPECT_EQ(config.phases[1].plan.layer(2).kind, Kind::kMoba);
  EXPECT_EQ(config.phases[1].plan.layer(3).kind, Kind::kFull);
  EXPECT_EQ(config.phases[0].plan.layer(0).kind, Kind::kFull);
}

TEST(TrainConfig, TokensBecomeSteps) {
  nlohmann::json root = parse_toml(kConfig, "f.toml");
  root["phase"][1].erase("step");
  root["phase"][1]["tokens"] = 8192 * 10 + 1;
  root["phase"][1]["batch_tokens"] = 16384;
  root["schedule"].erase("steps");
  root["schedule"]["tokens"] = 8192 * 11 + 16384 * 4;
  const TrainConfig config = parse_train_config(root, "f.toml");
  EXPECT_EQ(config.phases[1].step, 11);
  EXPECT_EQ(config.schedule.steps, 15);
}

TEST(TrainConfig, LayersMayBeListed) {
  const TrainConfig config = with({R"(phase.0.attention={layers = [{kind = "full"}, {kind = "window", window = 16},
      {kind = "moba", block_size = 8, top_k = 2}, {kind = "full"}]})"});
  EXPECT_EQ(config.phases[0].plan.layer(1).window, 16);
  EXPECT_EQ(config.phases[0].plan.layer(2).kind, Kind::kMoba);
}

TEST(TrainConfig, TheOptionsOfTheChoiceAreRead) {
  const std::string attention = R"(phase.0.attention={kind = "moba", block_size = 8, )";
  const TrainConfig config =
      with({attention + R"(top_k = 4, force_previous = true, sink_blocks = 2, share = "group", )" +
            R"(share_score = "sum_prob", representative_dtype = "float32"})"});
  const AttentionOptions layer = config.phases[0].plan.layer(1);
  EXPECT_TRUE(layer.force_previous);
  EXPECT_EQ(layer.sink_blocks, 2);
  EXPECT_EQ(layer.share, Share::kGroup);
  EXPECT_EQ(layer.share_score, ShareScore::kSumProb);
  EXPECT_EQ(layer.representative_dtype, RepresentativeDType::kFloat32);
  const std::pair<const char*, const char*> mistakes[] = {{"top_k = 1, force_previous = true}", "force_previous"},
                                                          {"top_k = 3, sink_blocks = 3}", "sink_blocks = 3"},
                                                          {"top_k = 3, share = \"row\"}", "head, group, layer"},
                                                          {"top_k = 3, share_score = 1}", "share_score"}};
  for (const auto& [text, named] : mistakes) {
    try {
      with({attention + text});
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(named), std::string::npos) << error.what();
    }
  }
}

// Every mistake names the file, the key and the rule.
TEST(TrainConfig, MistakesAreNamed) {
  const std::vector<std::pair<std::string, std::string>> mistakes = {
      {"optimizer.learning_rate=1", "optimizer.learning_rate"},
      {"optimiser.lr=1", "optimiser"},
      {"optimizer.lr=fast", "optimizer.lr"},
      {"optimizer.lr=-1", "optimizer.lr"},
      {"optimizer.lr=inf", "optimizer.lr"},
      {"optimizer.beta1=1.0", "optimizer.beta1"},
      {"run.seed=-1", "run.seed"},
      {"run.seed=1.5", "run.seed"},
      {"run.device=tpu", "run.device"},
      {"run.dtype=fp8", "run.dtype"},
      {"run.keep_checkpoints=0", "run.keep_checkpoints"},
      {"run=3", "run"},
      {"model.num_attention_heads=0", "model.num_attention_heads"},
      {"model.num_attention_heads=3", "model.num_attention_heads"},
      {"model.num_key_value_heads=3", "num_key_value_heads"},
      {"model.vocab_size=100", "model.vocab_size"},
      {"model.hidden_size=99999999999", "model.hidden_size"},
      {"model.hidden_sise=3", "model.hidden_sise"},
      {"data.train=[]", "data.train"},
      {"data.train=[3]", "data.train"},
      {"data.cache_dir=''", "data.cache_dir"},
      {"recall.fraction=1.5", "recall.fraction"},
      {"data.tokenizer=some.model", "recall.fraction"},
      {"schedule.steps=50", "schedule.steps"},
      {"schedule.tokens=100", "schedule.steps"},
      {"schedule.kind=linear", "schedule.kind"},
      {"phase=[]", "phase"},
      {"phase.0.step=1", "phase.0.step"},
      {"phase.1.step=0", "phase.1.step"},
      {"phase.1.sequence_length=8192", "phase.1.sequence_length"},
      {"phase.1.sequence_length=100", "phase.1.sequence_length"},
      {"phase.0.batch_tokens=1000", "phase.0.batch_tokens"},
      {"phase.0.micro_batch_tokens=3072", "phase.0.micro_batch_tokens"},
      {"phase.1.attention={kind = \"moba\"}", "phase.1.attention.block_size"},
      {"phase.1.attention={kind = \"moba\", block_size = 0, top_k = 1}", "phase.1.attention.block_size"},
      {"phase.1.attention={kind = \"nsa\"}", "phase.1.attention.kind"},
      {"phase.1.attention={kind = \"full\", top_k = 1}", "phase.1.attention.top_k"},
      {"phase.1.attention={kind = \"moba\", block_size = 8, top_k = 1, last_n_full = 5}", "last_n_full"},
      {"phase.1.atention={kind = \"full\"}", "phase.1.atention"},
  };
  for (const auto& [override_text, key] : mistakes) {
    const std::string message = error_of([&text = override_text] { with({text}); });
    EXPECT_HAS(message, "f.toml");
    EXPECT_HAS(message, key);
  }
}

TEST(TrainConfig, MissingKeysAreNamed) {
  for (const auto& [section, key] : std::vector<std::pair<std::string, std::string>>{
           {"data", "train"}, {"data", "cache_dir"}, {"schedule", "steps"}}) {
    nlohmann::json root = parse_toml(kConfig, "f.toml");
    root[section].erase(key);
    EXPECT_HAS(error_of([&] { parse_train_config(root, "f.toml"); }), section + "." + key);
  }
}

TEST(TrainConfig, ShippedConfigsParse) {
  const std::filesystem::path folder = std::filesystem::path(MOBA_SOURCE_DIR) / "configs";
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".toml") continue;
    EXPECT_NO_THROW(load_train_config(entry.path(), {})) << entry.path();
    ++count;
  }
  EXPECT_GE(count, 2);
}

}  // namespace
}  // namespace moba::lm
