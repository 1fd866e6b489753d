#include "lm/model/ops.h"

#include <cmath>

#include "lm/model/rope.h"
#include "model_support.h"

namespace moba::lm {
namespace {

using torch::Tensor;

/// Compares autograd's gradient of sum(f(inputs) * weights) with central differences, in float64.
void check_gradients(const std::function<std::vector<Tensor>(const std::vector<Tensor>&)>& f,
                     std::vector<Tensor> inputs) {
  torch::manual_seed(11);
  std::vector<Tensor> weights;
  const auto loss = [&] {
    const std::vector<Tensor> outputs = f(inputs);
    Tensor sum = torch::zeros({}, torch::kFloat64);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (weights.size() <= i) weights.push_back(torch::randn_like(outputs[i]));
      sum = sum + (outputs[i] * weights[i]).sum();
    }
    return sum;
  };
  for (Tensor& input : inputs) input.requires_grad_();
  const std::vector<Tensor> gradients = torch::autograd::grad({loss()}, inputs);
  constexpr double kStep = 1e-6;
  const torch::NoGradGuard no_gradients;
  for (std::size_t which = 0; which < inputs.size(); ++which) {
    Tensor flat = inputs[which].view(-1);
    for (std::int64_t i = 0; i < flat.numel(); ++i) {
      const double value = flat[i].item<double>();
      flat[i] = value + kStep;
      const double above = loss().item<double>();
      flat[i] = value - kStep;
      const double below = loss().item<double>();
      flat[i] = value;
      EXPECT_NEAR(gradients[which].reshape(-1)[i].item<double>(), (above - below) / (2 * kStep), 1e-6)
          << "input " << which << ", element " << i;
    }
  }
}

Tensor random(at::IntArrayRef shape) {
  return torch::randn(shape, torch::kFloat64);
}

ModelConfig config_with(std::int64_t head_dim, double theta) {
  ModelConfig config = testing::tiny_config();
  config.head_dim = head_dim;
  config.rope_theta = theta;
  return config;
}

TEST(Rope, PositionsRestartInEverySequence) {
  const Tensor offsets = torch::tensor({0, 3, 3, 3, 4, 9}, torch::kInt32);
  const Tensor expected = torch::tensor({0, 1, 2, 0, 0, 1, 2, 3, 4}, torch::kInt32);
  EXPECT_TRUE(torch::equal(packed_positions(offsets, 9), expected));
  EXPECT_TRUE(torch::equal(packed_positions(offsets.to(torch::kInt64), 9), expected));
  EXPECT_EQ(packed_positions(torch::tensor({0}, torch::kInt32), 0).numel(), 0);
  EXPECT_EQ(packed_positions(torch::tensor({5, 2}, torch::kInt32), 9).size(0), 9);  // nonsense stays in bounds
}

TEST(Rope, TurnsPairsByTheirAngle) {
  const ModelConfig config = config_with(4, 100.0);  // frequencies 1 and 0.1
  const RopeTable table = rope_table(torch::tensor({0, 3}, torch::kInt32), rope_frequencies(config));
  const Tensor qkv = torch::tensor({1.0, 2.0, 3.0, 4.0}).to(torch::kFloat32).repeat({2, 3});  // q, k, v of one head
  const auto [q, k, v] = split_and_rotate(qkv, table, 1, 1);
  const double a = 3.0, b = 0.3;
  const std::vector<double> expected{1 * std::cos(a) - 3 * std::sin(a), 2 * std::cos(b) - 4 * std::sin(b),
                                     3 * std::cos(a) + 1 * std::sin(a), 4 * std::cos(b) + 2 * std::sin(b)};
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(q[1][0][i].item<float>(), expected[static_cast<std::size_t>(i)], 1e-5);
    EXPECT_NEAR(k[1][0][i].item<float>(), expected[static_cast<std::size_t>(i)], 1e-5);
    EXPECT_EQ(q[0][0][i].item<float>(), static_cast<float>(i + 1));
    EXPECT_EQ(v[1][0][i].item<float>(), static_cast<float>(i + 1));
  }
}

TEST(Rope, LinearAndLlama3Frequencies) {
  ModelConfig config = config_with(8, 1e4);  // 1, 0.1, 0.01, 0.001: wavelengths 6.28, 62.8, 628, 6283
  const Tensor plain = rope_frequencies(config);
  EXPECT_NEAR(plain[3].item<float>(), 1e-3, 1e-8);
  config.rope_scaling = {RopeScaling::Type::kLinear, 4.0, 1.0, 4.0, 0};
  EXPECT_TRUE(torch::allclose(rope_frequencies(config), plain / 4.0));
  config.rope_scaling = {RopeScaling::Type::kLlama3, 8.0, 1.0, 4.0, 128};
  const Tensor scaled = rope_frequencies(config);
  EXPECT_EQ(scaled[0].item<float>(), plain[0].item<float>());                // turns 20 times in 128: left alone
  EXPECT_NEAR(scaled[3].item<float>(), plain[3].item<float>() / 8.0, 1e-9);  // turns 0.02 times: slowed
  const double turns = 128 * 0.1 / (2 * M_PI), blend = (turns - 1.0) / 3.0;  // turns 2.04 times: between
  EXPECT_NEAR(scaled[1].item<float>(), 0.1 * ((1 - blend) / 8.0 + blend), 1e-7);
}

TEST(Rope, SixteenBitIsTheRoundedFloatResult) {
  torch::manual_seed(2);
  const RopeTable table = rope_table(torch::arange(60000, 60010), rope_frequencies(config_with(64, 1e6)));
  const Tensor qkv = torch::randn({10, 4 * 64}).to(torch::kBFloat16);
  const auto [q16, k16, v16] = split_and_rotate(qkv, table, 2, 1);
  const auto [q32, k32, v32] = split_and_rotate(qkv.to(torch::kFloat32), table, 2, 1);
  EXPECT_EQ(q16.scalar_type(), torch::kBFloat16);
  EXPECT_TRUE(torch::equal(q16, q32.to(torch::kBFloat16)));
  EXPECT_TRUE(torch::equal(k16, k32.to(torch::kBFloat16)));
  EXPECT_TRUE(q16.is_contiguous() && k16.is_contiguous() && v16.is_contiguous());
}

TEST(Gradients, SplitAndRotate) {
  torch::manual_seed(3);
  const RopeTable table = rope_table(torch::tensor({0, 5, 2}), rope_frequencies(config_with(8, 1e2)));
  check_gradients(
      [&](const std::vector<Tensor>& in) {
        const auto [q, k, v] = split_and_rotate(in[0], table, 2, 1);
        return std::vector<Tensor>{q, k, v};
      },
      {random({3, 4 * 8})});
}

TEST(Gradients, SwiGlu) {
  torch::manual_seed(4);
  check_gradients([](const std::vector<Tensor>& in) { return std::vector<Tensor>{swiglu(in[0], in[1])}; },
                  {random({3, 5}), random({3, 5})});
  const Tensor gate = random({3, 5}), up = random({3, 5});
  EXPECT_TRUE(torch::allclose(swiglu(gate, up), gate * torch::sigmoid(gate) * up));
}

TEST(Gradients, RmsNormAndProject) {
  torch::manual_seed(5);
  check_gradients([](const std::vector<Tensor>& in) { return std::vector<Tensor>{rms_norm(in[0], in[1], 1e-5)}; },
                  {random({3, 6}), random({6})});
  check_gradients(
      [](const std::vector<Tensor>& in) {
        return std::vector<Tensor>{project(in[0], {in[1], in[2]})};
      },
      {random({3, 6}), random({2, 6}), random({4, 6})});
}

TEST(Gradients, MasterWeightsGetTheirOwnDtype) {
  const Tensor weight = torch::randn({4, 6}, torch::requires_grad());
  const Tensor x = torch::randn({3, 6}).to(torch::kBFloat16);
  const Tensor out = project(x, {weight});
  EXPECT_EQ(out.scalar_type(), torch::kBFloat16);
  out.sum().backward();
  EXPECT_EQ(weight.grad().scalar_type(), torch::kFloat32);
}

TEST(RmsNorm, Float32InsideSixteenBits) {
  torch::manual_seed(6);
  const Tensor x = (torch::randn({50, 256}) * 30).to(torch::kBFloat16), weight = torch::rand({256}) + 0.5;
  const Tensor wide = x.to(torch::kFloat64);
  const Tensor exact =
      wide / (wide.pow(2).mean(-1, true) + 1e-5).sqrt() * weight.to(torch::kBFloat16).to(torch::kFloat64);
  const Tensor error = (rms_norm(x, weight, 1e-5).to(torch::kFloat64) - exact).abs() / exact.abs().clamp_min(1e-3);
  EXPECT_LT(error.max().item<double>(), 1.0 / 128);  // at most two roundings to 8 bits
}

TEST(Recompute, SameValuesAndGradients) {
  torch::manual_seed(7);
  const Tensor w = torch::randn({6, 6}, torch::requires_grad());
  int runs = 0;
  const auto body = [&](const Tensor& x) {
    ++runs;
    return torch::tanh(torch::mm(x, w)) + x;
  };
  const Tensor x = torch::randn({4, 6}, torch::requires_grad());
  const Tensor plain = body(x), recomputed = recompute_in_backward(body, x, {w});
  EXPECT_TRUE(torch::equal(plain, recomputed));
  const auto expected = torch::autograd::grad({plain.pow(2).sum()}, {x, w});
  runs = 0;
  const auto found = torch::autograd::grad({recomputed.pow(2).sum()}, {x, w});
  EXPECT_EQ(runs, 1);
  EXPECT_TRUE(torch::equal(found[0], expected[0]));
  EXPECT_TRUE(torch::equal(found[1], expected[1]));
}

}  // namespace
}  // namespace moba::lm
