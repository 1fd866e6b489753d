// The parts of the trainer by themselves: schedule, optimizer, figures, reports, event files.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "lm/train/flops.h"
#include "lm/train/optimizer.h"
#include "lm/train/report.h"
#include "lm/train/run_folder.h"
#include "lm/train/schedule.h"
#include "lm/train/step.h"
#include "lm/train/stop.h"
#include "lm/train/tensorboard.h"
#include "train_support.h"

namespace moba::lm {
namespace {

using testing::TemporaryFolder;

TrainConfig two_phases(const std::string& kind) {
  TrainConfig config;
  config.optimizer.lr = 1.0;
  config.schedule = {.steps = 100, .kind = kind, .warmup = 10, .decay_fraction = 0.25, .final_fraction = 0.1};
  PhaseConfig phase;
  phase.batch_tokens = 1000;
  config.phases.push_back(phase);
  phase.step = 60;
  phase.batch_tokens = 1500;
  phase.lr_scale = 0.5;
  config.phases.push_back(phase);
  return config;
}

TEST(Schedule, WarmsUpStaysAndDecays) {
  const TrainConfig config = two_phases("wsd");
  const Schedule schedule(config);
  EXPECT_EQ(schedule.tokens_before(60), 60'000);
  EXPECT_EQ(schedule.tokens_before(100), 120'000);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(0), 0.1);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(9), 1.0);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(59), 1.0);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(60), 0.5);
  // The last 30,000 tokens are the last 20 steps.
  EXPECT_DOUBLE_EQ(schedule.learning_rate(80), 0.5);
  EXPECT_NEAR(schedule.learning_rate(90), 0.5 * (0.1 + 0.9 * 0.5), 1e-12);
  EXPECT_NEAR(schedule.learning_rate(99), 0.5 * (0.1 + 0.9 / 20), 1e-12);
}

TEST(Schedule, CosineEndsAtItsFraction) {
  TrainConfig config = two_phases("cosine");
  config.phases.pop_back();
  const Schedule schedule(config);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(10), 1.0);
  EXPECT_NEAR(schedule.learning_rate(55), 0.1 + 0.9 * 0.5, 1e-12);
  EXPECT_NEAR(schedule.learning_rate(100), 0.1, 1e-12);
}

TEST(Flops, CountPairsByThePlan) {
  ModelConfig model;
  PhaseConfig phase;
  phase.sequence_length = 2048;
  phase.batch_tokens = 2048;
  phase.plan = uniform_plan(8, {.kind = Kind::kFull}, 0);
  const double dense = step_flops(model, phase);
  EXPECT_NEAR(dense, 2048 * (6.0 * static_cast<double>(model.parameter_count()) + 8 * 12 * 256 * 1024.5), 1);
  phase.plan = uniform_plan(8, {.kind = Kind::kMoba, .block_size = 64, .top_k = 8}, 1);
  EXPECT_LT(step_flops(model, phase), dense);
}

ModelConfig small_config() {
  ModelConfig config;
  config.hidden_size = 16;
  config.intermediate_size = 24;
  config.num_hidden_layers = 1;
  config.num_attention_heads = config.num_key_value_heads = 2;
  config.head_dim = 8;
  return config;
}

Model small_model(std::uint64_t seed) {
  Model model(small_config());
  model->init_weights(seed);
  return model;
}

// The published update, written out in float64.
TEST(Optimizer, IsAdamWWithClipping) {
  OptimizerConfig config;
  config.weight_decay = 0.3;
  config.clip = 0.5;
  Model model = small_model(1);
  AdamW optimizer(model, config);
  std::map<std::string, torch::Tensor> weights, first, second;
  for (const auto& item : model->named_parameters()) {
    weights[item.key()] = item.value().detach().to(torch::kFloat64).clone();
    first[item.key()] = second[item.key()] = torch::zeros_like(weights[item.key()]);
  }
  torch::manual_seed(5);
  for (int step = 1; step <= 5; ++step) {
    const double scale = step == 3 ? 1e-4 : 1.0;  // one step is not clipped
    double square = 0;
    std::map<std::string, torch::Tensor> gradients;
    for (const auto& item : model->named_parameters()) {
      const torch::Tensor gradient = torch::randn_like(item.value()) * scale;
      item.value().mutable_grad() = gradient;
      gradients[item.key()] = gradient.to(torch::kFloat64);
      square += gradients[item.key()].square().sum().item<double>();
    }
    const double norm = std::sqrt(square), lr = 0.01 * step;
    const AdamW::StepInfo info = optimizer.step(lr);
    EXPECT_NEAR(info.gradient_norm.item<double>(), norm, 1e-4 * norm);
    EXPECT_EQ(info.skipped.item<double>(), 0);
    for (auto& [name, weight] : weights) {
      const torch::Tensor g = gradients[name] * std::min(1.0, config.clip / norm);
      first[name] = config.beta1 * first[name] + (1 - config.beta1) * g;
      second[name] = config.beta2 * second[name] + (1 - config.beta2) * g.square();
      if (weight.dim() >= 2) weight = weight * (1 - lr * config.weight_decay);
      const torch::Tensor m = first[name] / (1 - std::pow(config.beta1, step));
      const torch::Tensor v = second[name] / (1 - std::pow(config.beta2, step));
      weight = weight - lr * m / (v.sqrt() + config.eps);
    }
  }
  for (const auto& item : model->named_parameters()) {
    EXPECT_TRUE(torch::allclose(item.value().to(torch::kFloat64), weights[item.key()], 1e-4, 1e-6)) << item.key();
    EXPECT_FALSE(item.value().grad().defined());
  }
}

TEST(Optimizer, SkipsAGradientThatIsNotFinite) {
  Model model = small_model(1);
  AdamW optimizer(model, {});
  const torch::Tensor before = model->parameters()[0].detach().clone();
  model->parameters()[0].mutable_grad() = torch::full_like(before, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(optimizer.step(0.1).skipped.item<double>(), 1);
  EXPECT_TRUE(model->parameters()[0].equal(before));
  EXPECT_EQ(optimizer.state().at("step").item<double>(), 0);
  EXPECT_EQ(optimizer.state().at("exp_avg." + model->named_parameters()[0].key()).abs().max().item<double>(), 0);
}

TEST(Optimizer, StateGoesRound) {
  Model model = small_model(1), other = small_model(2);
  AdamW one(model, {}), two(other, {});
  for (torch::Tensor& parameter : model->parameters()) parameter.mutable_grad() = torch::ones_like(parameter);
  one.step(0.1);
  two.load_state(one.state(), "here");
  for (const auto& [name, tensor] : one.state()) EXPECT_TRUE(tensor.equal(two.state().at(name))) << name;
  NamedTensors broken = one.state();
  broken.erase("step");
  EXPECT_HAS(testing::error_of([&] { two.load_state(broken, "here"); }), "'step' is missing");
  broken = one.state();
  broken["more"] = torch::zeros({1});
  EXPECT_HAS(testing::error_of([&] { two.load_state(broken, "here"); }), "here");
}

TEST(Figures, CountWhatTheBatchHolds) {
  FigureSums sums(torch::kCPU);
  StepBatch batch;
  batch.tokens = 4;
  batch.text_tokens = 2;
  batch.answer_tokens = 2;
  batch.facts = 2;
  MicroBatch part;
  part.targets = torch::tensor({0, 1, 2, 0}, torch::kInt64);
  part.weights = torch::tensor({1.0F, 1.0F, 4.0F, 4.0F});
  part.text_mask = torch::tensor({1.0F, 1.0F, 0.0F, 0.0F});
  part.answer_rows = torch::tensor({2, 3}, torch::kInt64);
  part.answer_facts = torch::tensor({0, 1}, torch::kInt64);
  part.facts = 2;
  torch::Tensor logits = torch::zeros({4, 3});
  logits[2][2] = 5;  // right
  logits[3][1] = 5;  // wrong
  const torch::Tensor nll = torch::tensor({1.0F, 3.0F, 0.5F, 2.0F});
  sums.count(batch);
  sums.add_forward(logits, nll, part, 10.0);
  sums.add_update({torch::tensor(2.0F), torch::tensor(0.0F)});
  FigureSums copy(torch::kCPU);
  copy.load_state(nlohmann::json::parse(sums.state().dump()), "here");
  for (FigureSums* each : {&sums, &copy}) {
    const StepFigures figures = each->take().figures();
    EXPECT_NEAR(figures.loss, (1 + 3 + 4 * 2.5) / 10, 1e-6);
    EXPECT_DOUBLE_EQ(figures.text_loss, 2);
    EXPECT_DOUBLE_EQ(figures.recall, 0.5);
    EXPECT_DOUBLE_EQ(figures.exact, 0.5);
    EXPECT_DOUBLE_EQ(figures.gradient_norm, 2);
    EXPECT_TRUE(std::isnan(each->take().figures().recall));
  }
  EXPECT_HAS(testing::error_of([&] { copy.load_state({{"sums", {1}}}, "here"); }), "here: figures");
}

TEST(Report, LineSaysEverything) {
  StepReport report;
  report.step = 20;
  report.steps = 100;
  report.figures = {.loss = 1.25, .text_loss = 1.5, .recall = 0.75, .exact = 0.5, .gradient_norm = 0.25};
  report.learning_rate = 0.002;
  report.tokens_per_second = 1.5e6;
  report.tflops = 98.9;
  report.peak_tflops = 989;
  report.seconds_left = 3725;
  report.memory.peak = 2'000'000'000;
  EXPECT_EQ(step_line(report),
            "step 20/100 | loss 1.2500 | text 1.5000 | recall 0.750 exact 0.500 | lr 2.00e-03 | norm 0.250 | 1.50M "
            "tok/s | 98.90 TFLOP/s | MFU 10.0% | 2.00 GB | ETA 1:02:05");
}

TEST(Report, MetricsForgetWhatIsRunAgain) {
  const TemporaryFolder folder;
  testing::write_text(folder / "metrics.jsonl", "{\"step\": 10}\n{\"step\": 20}\n{\"step\": 30}\n{\"step\": 4");
  { const Reporter reporter(folder / "metrics.jsonl", folder / "events", 20, {}); }
  EXPECT_EQ(testing::read_text(folder / "metrics.jsonl"), "{\"step\": 10}\n{\"step\": 20}\n");
}

// RFC 3720 appendix B.4, and the usual check value of CRC-32C.
TEST(TensorBoard, Checksum) {
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
}

TEST(TensorBoard, RecordsAreFramedAndEncoded) {
  const TemporaryFolder folder;
  {
    EventWriter writer(folder.path(), 7);
    writer.scalars(300, std::vector<std::pair<std::string, double>>{{"a/b", 1.5}});
  }
  const std::string file = testing::read_text((*std::filesystem::directory_iterator(folder.path())).path());
  std::vector<std::string> events;
  for (std::size_t at = 0; at < file.size();) {
    std::uint64_t size = 0;
    std::uint32_t crc = 0;
    ASSERT_LE(at + 12, file.size());
    std::memcpy(&size, file.data() + at, 8);
    std::memcpy(&crc, file.data() + at + 8, 4);
    EXPECT_EQ(crc, masked_crc32c(file.substr(at, 8)));
    ASSERT_LE(at + 16 + size, file.size());
    events.push_back(file.substr(at + 12, size));
    std::memcpy(&crc, file.data() + at + 12 + size, 4);
    EXPECT_EQ(crc, masked_crc32c(events.back()));
    at += 16 + size;
  }
  ASSERT_EQ(events.size(), 3u);
  EXPECT_HAS(events[0], "brain.Event:2");
  // Field 1 (double), field 2 (varint 7), field 7 {field 1: 1}: the session starts at step 7.
  EXPECT_EQ(events[1].substr(9), (std::string{0x10, 7, 0x3A, 2, 8, 1}));
  // Field 2 (varint 300), field 5 {field 1 {field 1: "a/b", field 2: 1.5f}}.
  EXPECT_EQ(events[2].substr(9), std::string("\x10\xAC\x02\x2A\x0C\x0A\x0A\x0A\x03"
                                             "a/b\x15\x00\x00\xC0\x3F",
                                             17));
}

TEST(Stop, CountsFromTheStartOfTheProcess) {
  const double first = process_seconds();
  EXPECT_GT(first, 0);
  EXPECT_GE(process_seconds(), first);
  EXPECT_FALSE(TimeBudget(std::nullopt).spent(1e9));
  EXPECT_FALSE(TimeBudget(60).spent(1));
  EXPECT_TRUE(TimeBudget(60).spent(3600));
}

TEST(Device, NamesWhatCannotBeHad) {
  EXPECT_EQ(resolve_device("cpu"), torch::Device(torch::kCPU));
  EXPECT_HAS(testing::error_of([] { resolve_device("tpu"); }), "'tpu'");
  if (const std::optional<std::string> problem = cuda_problem()) {
    EXPECT_HAS(testing::error_of([] { resolve_device("cuda"); }), *problem);
    EXPECT_EQ(resolve_device("auto"), torch::Device(torch::kCPU));
  }
  EXPECT_GT(memory_use(torch::kCPU).peak, 1 << 20);
  EXPECT_EQ(peak_bf16_tflops("NVIDIA H100 80GB HBM3"), 989);
  EXPECT_EQ(peak_bf16_tflops("something"), 0);
}

}  // namespace
}  // namespace moba::lm
