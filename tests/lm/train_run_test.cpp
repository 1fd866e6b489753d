// Whole training runs of a very small model: resume after any kind of stop is bit-equal, mistakes leave nothing behind.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <thread>

#include "lm/checkpoint/pretrained.h"
#include "lm/checkpoint/safetensors.h"
#include "lm/train/checkpoint.h"
#include "lm/train/resume_parts.h"
#include "lm/train/train.h"
#include "train_support.h"

extern char** environ;

namespace moba::lm {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::TemporaryFolder;
using testing::write_text;

constexpr const char* kConfig = R"(
[run]
device = "cpu"
dtype = "fp32"
seed = 3
log_every = 4
checkpoint_every = 5
[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
max_position_embeddings = 1024
[recall]
fraction = 0.5
[optimizer]
lr = 5e-3
[schedule]
steps = 24
warmup = 4
[[phase]]
step = 0
sequence_length = 512
batch_tokens = 1024
attention = {kind = "full"}
[[phase]]
step = 12
micro_batch_tokens = 512
checkpoint_activations = true
attention = {kind = "moba", block_size = 32, top_k = 3, last_n_full = 1}
[[phase]]
step = 20
sequence_length = 1024
micro_batch_tokens = 1024
)";

// A folder with a text and a config, and runs in it.
class TrainingRun : public ::testing::Test {
 protected:
  void TearDown() override { torch::set_num_threads(default_threads_); }

  void SetUp() override {
    // These models are too small for two threads to pay. The killed run below uses the machine's default.
    torch::set_num_threads(1);
    write_text(folder_ / "text/1.txt", testing::sample_prose(1, 30000));
    write_text(folder_ / "text/2.txt", testing::sample_prose(2, 700));
    write_text(folder_ / "valid/1.txt", testing::sample_prose(3, 9000));
    write_text(folder_ / "config.toml", kConfig);
  }

  TrainArguments arguments(const std::string& out, std::vector<std::string> overrides = {}) {
    TrainArguments result;
    result.config = folder_ / "config.toml";
    result.out = folder_ / out;
    result.overrides = std::move(overrides);
    result.overrides.push_back("data.train=" + (folder_ / "text").string());
    result.overrides.push_back("data.cache_dir=" + (folder_ / "cache").string());
    result.log = [this](const std::string& line) { log_ += line + "\n"; };
    return result;
  }

  NamedTensors final_weights(const std::string& out) {
    return read_safetensors(list_checkpoints(folder_ / out / "checkpoints").front() / "model.safetensors");
  }

  static void expect_same(const NamedTensors& a, const NamedTensors& b) {
    ASSERT_EQ(a.size(), b.size());
    for (const auto& [name, tensor] : a) EXPECT_TRUE(tensor.equal(b.at(name))) << name;
  }

  // Steps and losses of metrics.jsonl.
  std::map<std::int64_t, double> losses(const std::string& out) {
    std::map<std::int64_t, double> result;
    std::stringstream lines(testing::read_text(folder_ / out / "metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const nlohmann::json record = nlohmann::json::parse(line);
      if (!record.contains("loss")) continue;
      EXPECT_TRUE(result.emplace(record["step"], record["loss"]).second) << line;
    }
    return result;
  }

  const int default_threads_ = torch::get_num_threads();
  TemporaryFolder folder_;
  std::string log_;
};

TEST_F(TrainingRun, LearnsAndWritesEverything) {
  ASSERT_EQ(train(arguments("run", {"run.validate_every=12", "run.validate_tokens=2048", "schedule.steps=48",
                                    "model.final_rope_theta=3e6", "data.valid=" + (folder_ / "valid").string()})),
            TrainOutcome::kFinished);
  const std::map<std::int64_t, double> loss = losses("run");
  ASSERT_EQ(loss.size(), 12u);
  EXPECT_GT(loss.begin()->second, 5.0) << "an untrained model guesses among 256 bytes";
  EXPECT_LT(loss.rbegin()->second, 4.0) << log_;
  EXPECT_HAS(log_, "recall");
  EXPECT_HAS(log_, "validation | text_loss");
  EXPECT_EQ(list_checkpoints(folder_ / "run/checkpoints").size(), 2u);
  EXPECT_FALSE(fs::is_empty(folder_ / "run/tensorboard"));

  // The finished model is in bf16, with the last phase's plan, and its schedule stands in config.json.
  const Pretrained model = load_pretrained(folder_ / "run/final", torch::kCPU, torch::kFloat32);
  EXPECT_EQ(model.config.plan.layer(0).block_size, 32);
  EXPECT_EQ(model.config.plan.layer(1).kind, Kind::kFull);
  EXPECT_EQ(model.config.rope_theta, 3e6);
  const nlohmann::json config = nlohmann::json::parse(testing::read_text(folder_ / "run/final/config.json"));
  EXPECT_EQ(config["moba"]["schedule"]["phases"].size(), 3u);
  const NamedTensors weights = final_weights("run");
  for (const auto& [name, tensor] : read_safetensors(folder_ / "run/final/model.safetensors")) {
    EXPECT_EQ(tensor.scalar_type(), torch::kBFloat16);
    EXPECT_TRUE(tensor.equal(weights.at(name).to(torch::kBFloat16))) << name;
  }
}

TEST_F(TrainingRun, ResumeIsBitEqual) {
  ASSERT_EQ(train(arguments("whole")), TrainOutcome::kFinished);
  // A signal ends each leg behind its second line; the phases change within and between legs.
  TrainArguments leg = arguments("legs");
  int legs = 0;
  for (TrainOutcome outcome = TrainOutcome::kInterrupted; outcome != TrainOutcome::kFinished; ++legs) {
    ASSERT_LT(legs, 10);
    leg.resume = legs > 0;
    leg.log = [&, lines = 0](const std::string& line) mutable {
      log_ += line + "\n";
      if (line.rfind("step ", 0) == 0 && line.find("loss") != std::string::npos && ++lines == 2) ::raise(SIGTERM);
    };
    outcome = train(leg);
  }
  EXPECT_GE(legs, 3) << log_;
  expect_same(final_weights("whole"), final_weights("legs"));
  EXPECT_EQ(losses("whole"), losses("legs"));
}

TEST_F(TrainingRun, AccumulationAndRecomputationChangeOnlyRounding) {
  const std::vector<std::string> base = {"schedule.steps=3",
                                         "phase=[{sequence_length = 512, batch_tokens = 2048, "
                                         "attention = {kind = \"moba\", block_size = 32, top_k = 2}}]"};
  ASSERT_EQ(train(arguments("one", base)), TrainOutcome::kFinished);
  std::vector<std::string> cut = base;
  cut.push_back("phase.0.micro_batch_tokens=512");
  ASSERT_EQ(train(arguments("cut", cut)), TrainOutcome::kFinished);
  std::vector<std::string> recomputed = base;
  recomputed.push_back("phase.0.checkpoint_activations=true");
  ASSERT_EQ(train(arguments("recomputed", recomputed)), TrainOutcome::kFinished);
  const NamedTensors one = final_weights("one");
  expect_same(one, final_weights("recomputed"));
  for (const auto& [name, tensor] : final_weights("cut"))
    EXPECT_LT((tensor - one.at(name)).abs().max().item<float>(), 1e-4) << name;
}

TEST_F(TrainingRun, InitFromAFinishedModel) {
  ASSERT_EQ(train(arguments("first")), TrainOutcome::kFinished);
  std::vector<std::string> overrides = {"model={init_from = \"" + (folder_ / "first/final").string() + "\"}",
                                        "schedule.steps=21", "optimizer.lr=0.0", "optimizer.weight_decay=0.0"};
  ASSERT_EQ(train(arguments("second", overrides)), TrainOutcome::kFinished);
  const NamedTensors first = read_safetensors(folder_ / "first/final/model.safetensors");
  for (const auto& [name, tensor] : final_weights("second"))
    EXPECT_TRUE(tensor.equal(first.at(name).to(torch::kFloat32))) << name;
  overrides[0] = "model={init_from = \"" + (folder_ / "first/final").string() + "\", hidden_size = 8}";
  EXPECT_HAS(error_of([&] { train(arguments("third", overrides)); }), "model.hidden_size");
}

TEST_F(TrainingRun, ResumePartsCarryARunToAnotherFolder) {
  std::vector<std::string> overrides = {"run.resume_parts=" + (folder_ / "parts").string(), "run.resume_parts_mb=1"};
  TrainArguments first = arguments("here", overrides);
  first.log = [&, lines = 0](const std::string& line) mutable {
    if (line.find("loss") != std::string::npos && ++lines == 3) ::raise(SIGINT);
  };
  ASSERT_EQ(train(first), TrainOutcome::kInterrupted);
  const std::int64_t step = read_resume_position(folder_ / "parts").step;
  EXPECT_GE(step, 12);
  std::int64_t files = 0;
  for (const auto& entry : fs::directory_iterator(folder_ / "parts")) {
    EXPECT_LE(entry.file_size(), 1u << 20) << entry.path();
    ++files;
  }
  EXPECT_EQ(files, 2);

  TrainArguments second = arguments("there", overrides);
  second.resume = true;
  ASSERT_EQ(train(second), TrainOutcome::kFinished);
  EXPECT_HAS(log_, "at step " + std::to_string(step));
  // Close to the run that was never moved: only the moments were rounded.
  ASSERT_EQ(train(arguments("whole")), TrainOutcome::kFinished);
  const NamedTensors whole = final_weights("whole");
  for (const auto& [name, tensor] : final_weights("there"))
    EXPECT_LT((tensor - whole.at(name)).abs().max().item<float>(), 0.02) << name;
}

TEST_F(TrainingRun, MaxMinutesStopsWithACheckpoint) {
  TrainArguments limited = arguments("run");
  limited.max_minutes = 1e-6;
  ASSERT_EQ(train(limited), TrainOutcome::kStoppedByTime);
  EXPECT_EQ(list_checkpoints(folder_ / "run/checkpoints").size(), 1u);
  limited.resume = true;
  limited.max_minutes = std::nullopt;
  ASSERT_EQ(train(limited), TrainOutcome::kFinished);
  limited.log = [this](const std::string& line) { log_ += line + "\n"; };
  ASSERT_EQ(train(limited), TrainOutcome::kFinished);
  EXPECT_HAS(log_, "finished already");
}

TEST_F(TrainingRun, MistakesLeaveNothingBehind) {
  const auto refused = [&](const std::vector<std::string>& overrides, const std::string& part) {
    EXPECT_HAS(error_of([&] { train(arguments("new/deep", overrides)); }), part);
    EXPECT_FALSE(fs::exists(folder_ / "new")) << part;
    EXPECT_FALSE(fs::exists(folder_ / "cache")) << part;
  };
  refused({"optimizer.typo=1"}, "optimizer.typo");
  refused({"run.validate_every=2"}, "data.valid");
  refused({"data.valid=/nowhere"}, "/nowhere");
  refused({"data.tokenizer=/nowhere/tokenizer.model", "recall.fraction=0"}, "/nowhere");
  refused({"run.resume_parts=" + (folder_ / "text").string()}, "run.resume_parts");
  refused({"model={init_from = \"/nowhere\"}"}, "/nowhere");
  TrainArguments missing = arguments("new/deep");
  missing.overrides.push_back("data.train=/nowhere/text");
  EXPECT_HAS(error_of([&] { train(missing); }), "/nowhere/text");
  EXPECT_FALSE(fs::exists(folder_ / "new"));
}

TEST_F(TrainingRun, AnExistingRunIsNotOverwritten) {
  ASSERT_EQ(train(arguments("run")), TrainOutcome::kFinished);
  const std::string message = error_of([&] { train(arguments("run")); });
  EXPECT_HAS(message, (folder_ / "run").string());
  EXPECT_HAS(message, "--resume");
  TrainArguments other = arguments("run", {"model.intermediate_size=96", "schedule.steps=30"});
  other.resume = true;
  EXPECT_HAS(error_of([&] { train(other); }), "intermediate_size");
  other = arguments("run", {"run.seed=4", "schedule.steps=30"});
  other.resume = true;
  EXPECT_HAS(error_of([&] { train(other); }), "run.seed");
  write_text(folder_ / "file", "in the way");
  EXPECT_HAS(error_of([&] { train(arguments("file")); }), "run.out");
}

TEST_F(TrainingRun, ABrokenCheckpointIsNamed) {
  ASSERT_EQ(train(arguments("run")), TrainOutcome::kFinished);
  const fs::path newest = list_checkpoints(folder_ / "run/checkpoints").front();
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
    const std::string whole = testing::read_text(newest / name);
    for (const std::string& broken : {whole.substr(0, whole.size() / 2), std::string()}) {
      write_text(newest / name, broken);
      TrainArguments resumed = arguments("run", {"schedule.steps=30"});
      resumed.resume = true;
      EXPECT_HAS(error_of([&] { train(resumed); }), name);
    }
    write_text(newest / name, whole);
  }
}

// Bit-equal after kill -9 at any moment: a child process is killed again and again while it trains.

constexpr const char* kChildFolder = "MOBA_TEST_TRAIN_FOLDER";

TEST(TrainingChild, DISABLED_TrainsAndMayBeKilled) {
  const char* folder = std::getenv(kChildFolder);
  ASSERT_NE(folder, nullptr);
  TrainArguments arguments;
  arguments.config = fs::path(folder) / "config.toml";
  arguments.out = fs::path(folder) / "killed";
  arguments.overrides = {"data.train=" + std::string(folder) + "/text",
                         "data.cache_dir=" + std::string(folder) + "/cache2", "run.checkpoint_every=1"};
  arguments.resume = true;
  ASSERT_EQ(train(arguments), TrainOutcome::kFinished);
}

TEST_F(TrainingRun, KilledAtAnyMomentItResumesBitEqual) {
  torch::set_num_threads(default_threads_);
  ASSERT_EQ(train(arguments("whole", {"run.checkpoint_every=1"})), TrainOutcome::kFinished);
  ::setenv(kChildFolder, folder_.path().c_str(), 1);
  const std::string program = fs::read_symlink("/proc/self/exe");
  std::string filter = "--gtest_filter=TrainingChild.*", also = "--gtest_also_run_disabled_tests";
  char* const argv[] = {const_cast<char*>(program.c_str()), filter.data(), also.data(), nullptr};
  Random random(static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()), {});
  int kills = 0, shortest = 300;
  for (int attempt = 0; attempt < 200; ++attempt) {
    pid_t child = 0;
    posix_spawn_file_actions_t quiet;
    posix_spawn_file_actions_init(&quiet);
    posix_spawn_file_actions_addopen(&quiet, 1, "/dev/null", O_WRONLY, 0);
    ASSERT_EQ(::posix_spawn(&child, program.c_str(), &quiet, nullptr, argv, environ), 0);
    posix_spawn_file_actions_destroy(&quiet);
    // Longer lives later, so that the run ends on slow machines too.
    const auto life = std::chrono::milliseconds(random.between(shortest, 5 * shortest + 250 * attempt));
    const auto end = std::chrono::steady_clock::now() + life;
    int status = 0;
    pid_t done = 0;
    while ((done = ::waitpid(child, &status, WNOHANG)) == 0 && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    if (done == child) {
      ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "the child failed";
      if (kills > 0 || shortest < 10) break;
      // A fast machine finished before the first kill: once more, with shorter lives.
      fs::remove_all(folder_ / "killed");
      shortest /= 2;
      continue;
    }
    ::kill(child, SIGKILL);
    ::waitpid(child, &status, 0);
    ++kills;
  }
  EXPECT_GE(kills, 1);
  ASSERT_TRUE(fs::exists(folder_ / "killed/final/model.safetensors"));
  expect_same(final_weights("whole"), final_weights("killed"));
  EXPECT_EQ(losses("whole"), losses("killed"));
  for (const auto& entry : fs::directory_iterator(folder_ / "killed/checkpoints"))
    EXPECT_EQ(entry.path().extension(), "") << "left behind: " << entry.path();
}

}  // namespace
}  // namespace moba::lm
