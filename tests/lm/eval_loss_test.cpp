// Text loss against the logits of one forward pass.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "lm/eval/loss.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_hidden_layers = 2;
  config.num_attention_heads = config.num_key_value_heads = 2;
  config.head_dim = 16;
  return config;
}

std::vector<std::int64_t> tokens_of(std::int64_t count, std::int64_t seed) {
  std::vector<std::int64_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back((i * 31 + seed * 7 + (i * i) % 11) % 256);
  return tokens;
}

/// Nats of tokens 1 … of a window, from one forward pass.
torch::Tensor expected_nats(Model& model, const AttentionPlan& plan, const std::vector<std::int64_t>& tokens) {
  const torch::NoGradGuard no_gradients;
  const auto count = static_cast<std::int64_t>(tokens.size());
  const torch::Tensor ids = torch::tensor(tokens, torch::kInt64);
  const torch::Tensor logits =
      model->forward({ids, torch::tensor({std::int64_t{0}, count}, torch::kInt64).to(torch::kInt32), count}, plan);
  const torch::Tensor log_probabilities = logits.to(torch::kFloat64).log_softmax(1);
  return -log_probabilities.narrow(0, 0, count - 1).gather(1, ids.narrow(0, 1, count - 1).unsqueeze(1)).squeeze(1);
}

class EvaluateLoss : public testing::TestWithParam<bool> {
 protected:
  EvaluateLoss() {
    model_->init_weights(5);
    // Weights of some size, so that positions differ in loss.
    const torch::NoGradGuard no_gradients;
    for (torch::Tensor& weight : model_->parameters()) weight.mul_(4);
  }
  AttentionPlan plan() const {
    return GetParam() ? uniform_plan(2, {.kind = Kind::kMoba, .block_size = 16, .top_k = 3}, 0) : AttentionPlan{};
  }
  Model model_{small_config()};
};

TEST_P(EvaluateLoss, IsTheMeanOverWholeWindowsOfEachDocument) {
  constexpr std::int64_t kLength = 100;
  const std::vector<std::vector<std::int64_t>> documents = {tokens_of(250, 1), tokens_of(99, 2), tokens_of(100, 3)};
  std::int64_t last_done = 0, last_total = 0;
  const LossResult result =
      evaluate_loss(model_, plan(), documents, kLength, 9, 25, [&](std::int64_t done, std::int64_t total) {
        EXPECT_GE(done, last_done);
        last_done = done;
        last_total = total;
      });
  torch::Tensor sum = torch::zeros({kLength - 1}, torch::kFloat64);
  const auto window = [](const std::vector<std::int64_t>& document, std::int64_t begin) {
    return std::vector<std::int64_t>(document.begin() + begin, document.begin() + begin + kLength);
  };
  sum += expected_nats(model_, plan(), window(documents[0], 0));
  sum += expected_nats(model_, plan(), window(documents[0], 100));
  sum += expected_nats(model_, plan(), window(documents[2], 0));
  const torch::Tensor mean = sum / 3;

  EXPECT_EQ(result.windows, 3);
  EXPECT_EQ(result.tokens, 3 * (kLength - 1));
  EXPECT_NEAR(result.loss, mean.mean().item<double>(), 1e-5);
  EXPECT_EQ(result.trailing, 25);
  EXPECT_NEAR(result.trailing_loss, mean.narrow(0, kLength - 1 - 25, 25).mean().item<double>(), 1e-5);
  ASSERT_EQ(result.by_position.size(), 9u);
  for (std::int64_t bin = 0; bin < 9; ++bin) {  // 99 predicted tokens: 11 in each
    EXPECT_NEAR(result.by_position[static_cast<std::size_t>(bin)], mean.narrow(0, 11 * bin, 11).mean().item<double>(),
                1e-5);
  }
  EXPECT_EQ(last_total, 3 * kLength);
  EXPECT_LE(last_done, last_total);
}

INSTANTIATE_TEST_SUITE_P(FullAndMoba, EvaluateLoss, testing::Bool());

TEST(EvaluateLossErrors, NameWhatIsWrong) {
  Model model(small_config());
  model->init_weights(1);
  const auto message = [&](std::int64_t length, std::int64_t bins, std::int64_t trailing) -> std::string {
    try {
      evaluate_loss(model, {}, {tokens_of(50, 1)}, length, bins, trailing, {});
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  EXPECT_NE(message(1, 1, 1).find("length"), std::string::npos);
  EXPECT_NE(message(10, 0, 1).find("bins"), std::string::npos);
  EXPECT_NE(message(10, 1, 10).find("trailing"), std::string::npos);
  const std::string too_long = message(64, 1, 1);
  EXPECT_NE(too_long.find("64"), std::string::npos);
  EXPECT_NE(too_long.find("50"), std::string::npos);
}

}  // namespace
}  // namespace moba::lm
