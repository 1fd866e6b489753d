#include "lm/model/ops.h"

#include <cmath>
#include <limits>

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

// Lengths around the kernels' 16 lanes, rows enough for several threads, values beyond every range.
TEST(RowKernels, EqualDoublePrecisionWithinOneRounding) {
  torch::manual_seed(8);
  for (const std::int64_t n : {1, 8, 15, 16, 17, 40, 256}) {
    for (const auto& [dtype, unit] : {std::pair{torch::kFloat32, 1e-6}, {torch::kBFloat16, 1.0 / 256}}) {
      const auto draw = [&, dtype = dtype] { return (torch::randn({300, n}) * 20).to(dtype); };
      const auto error = [](const Tensor& got, const Tensor& exact) {
        return ((got.to(torch::kFloat64) - exact).abs() / exact.abs().clamp_min(1e-4)).max().item<double>();
      };
      const Tensor x = draw(), gate = draw(), up = draw(), weight = draw()[0].contiguous();
      const Tensor wide = x.to(torch::kFloat64), wide_gate = gate.to(torch::kFloat64);
      const Tensor normed = wide / (wide.pow(2).mean(-1, true) + 1e-5).sqrt() * weight.to(torch::kFloat64);
      EXPECT_LT(error(rms_norm(x, weight, 1e-5), normed), unit) << n << " " << dtype;
      const Tensor gated = wide_gate * torch::sigmoid(wide_gate) * up.to(torch::kFloat64);
      EXPECT_LT(error(swiglu(gate, up), gated), unit) << n << " " << dtype;
    }
  }
}

TEST(RowKernels, FewRowsTimesWeightsSideBySide) {
  torch::manual_seed(12);
  const torch::NoGradGuard no_gradients;
  for (const std::int64_t n : {1, 15, 16, 40, 256}) {
    for (const std::int64_t rows : {0, 1, 3, 4, 5}) {  // 5: the general product
      for (const auto& [dtype, unit] : {std::pair{torch::kFloat32, 1e-5}, {torch::kBFloat16, 1.0 / 128}}) {
        const Tensor x = torch::randn({rows, n}).to(dtype);
        const std::vector<Tensor> weights{torch::randn({200, n}).to(dtype), torch::randn({1, n}),
                                          torch::randn({n, 130}).to(dtype).t()};
        const Tensor got = project(x, weights);
        ASSERT_EQ(got.sizes(), (at::IntArrayRef{rows, 331}));
        EXPECT_EQ(got.scalar_type(), dtype);
        std::vector<Tensor> wide;
        for (const Tensor& weight : weights) wide.push_back(weight.to(dtype).to(torch::kFloat64));
        const Tensor exact = torch::mm(x.to(torch::kFloat64), torch::cat(wide).t());
        if (rows == 0) continue;
        EXPECT_LT((got - exact).abs().max().item<double>(), unit * exact.abs().max().item<double>()) << n;
      }
    }
  }
}

TEST(RowKernels, ValuesThatAreNotFinite) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    const Tensor gate = torch::tensor({{nan, inf, -1e30, 1e30, -100.0, 2.0}}).to(dtype);
    const Tensor got = swiglu(gate, torch::ones_like(gate)).to(torch::kFloat64);
    EXPECT_TRUE(std::isnan(got[0][0].item<double>()));
    EXPECT_EQ(got[0][1].item<double>(), inf);
    EXPECT_EQ(got[0][2].item<double>(), 0.0);
    EXPECT_GT(got[0][3].item<double>(), 0.99e30);
    EXPECT_NEAR(got[0][4].item<double>(), 0.0, 1e-30);
    const Tensor x = torch::tensor({{nan, 1.0}, {inf, 1.0}, {0.0, 0.0}, {3.0, -4.0}}).to(dtype);
    const Tensor normed = rms_norm(x, torch::ones({2}), 1e-5).to(torch::kFloat64);
    EXPECT_TRUE(normed[0].isnan().all().item<bool>());
    EXPECT_TRUE(std::isnan(normed[1][0].item<double>()));
    EXPECT_EQ(normed[1][1].item<double>(), 0.0);
    EXPECT_EQ(normed[2].abs().sum().item<double>(), 0.0);
    EXPECT_NEAR(normed[3][1].item<double>(), -4 / std::sqrt(12.5), 0.005);
  }
}

TEST(RowKernels, GradientsAreThoseOfAten) {
  torch::manual_seed(9);
  const Tensor x = torch::randn({5, 24}, torch::requires_grad()), weight = torch::randn({24}, torch::requires_grad());
  const Tensor dout = torch::randn({5, 24});
  const auto found = torch::autograd::grad({rms_norm(x, weight, 1e-5)}, {x, weight}, {dout});
  const auto expected = torch::autograd::grad({at::rms_norm(x, {24}, weight, 1e-5)}, {x, weight}, {dout});
  EXPECT_TRUE(torch::allclose(found[0], expected[0], 1e-5, 1e-6));
  EXPECT_TRUE(torch::allclose(found[1], expected[1], 1e-5, 1e-6));
}

TEST(RowKernels, RotateHalvesOfAnyWidth) {
  torch::manual_seed(10);
  for (const std::int64_t head_dim : {2, 8, 30, 32, 64, 72}) {
    const RopeTable table = rope_table(torch::arange(70, 90), rope_frequencies(config_with(head_dim, 1e4)));
    const Tensor qkv = torch::randn({20, 5 * head_dim});
    const auto [q, k, v] = split_and_rotate(qkv, table, 3, 1);
    const auto [q64, k64, v64] = split_and_rotate(qkv.to(torch::kFloat64), table, 3, 1);  // ATen's operators
    EXPECT_LT((q - q64).abs().max().item<double>(), 1e-6) << head_dim;
    EXPECT_LT((k - k64).abs().max().item<double>(), 1e-6) << head_dim;
    EXPECT_TRUE(torch::equal(v.to(torch::kFloat64), v64)) << head_dim;
  }
  const RopeTable table = rope_table(torch::arange(20), rope_frequencies(config_with(16, 1e4)));
  const Tensor qkv = torch::randn({20, 4 * 16}, torch::requires_grad());
  const auto [q, k, v] = split_and_rotate(qkv, table, 2, 1);
  // The gradient of a sum is one number, expanded.
  const Tensor gradient = torch::autograd::grad({q.sum() + k.sum() + v.sum()}, {qkv})[0];
  const auto [cos, sin] = std::pair{table.cos.view({20, 8}), table.sin.view({20, 8})};
  const Tensor turned_back = torch::cat({cos + sin, cos - sin}, 1);
  EXPECT_TRUE(torch::allclose(gradient, torch::cat({turned_back, turned_back, turned_back, torch::ones({20, 16})}, 1)));
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
