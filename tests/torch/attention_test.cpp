// The C++ face of the operators: errors as moba::Error, gradients through autograd, the cache.
#include "moba_torch/attention.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <string>
#include <vector>

#include "moba/error.h"
#include "moba_torch/self_check.h"

namespace moba::torch_ops {
namespace {

struct Inputs {
  at::Tensor q, k, v;
};

Inputs inputs(std::int64_t tokens, at::ScalarType dtype = at::kFloat) {
  torch::manual_seed(0);
  const auto options = at::TensorOptions(dtype);
  return {torch::randn({tokens, 4, 32}, options).requires_grad_(),
          torch::randn({tokens, 2, 32}, options).requires_grad_(),
          torch::randn({tokens, 2, 16}, options).requires_grad_()};
}

SequenceBatch batch_of(std::vector<std::int64_t> ends, std::int64_t longest) {
  return SequenceBatch::self(at::tensor(ends, at::kLong), longest);
}

AttentionOptions moba_options(std::int64_t block_size, std::int64_t top_k) {
  AttentionOptions options;
  options.block_size = block_size;
  options.top_k = top_k;
  return options;
}

void expect_error(const std::function<void()>& call, const std::string& word) {
  try {
    call();
    ADD_FAILURE() << "no error naming " << word;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
  }
}

TEST(Attention, AllBlocksIsFullAttentionForwardAndBackward) {
  const Inputs x = inputs(100);
  const SequenceBatch batch = batch_of({0, 60, 100}, 60);
  AttentionOptions full;
  full.kind = Kind::kFull;
  std::vector<std::vector<at::Tensor>> results;
  for (const AttentionOptions& options : {full, moba_options(8, 1000)}) {
    auto [out, lse] = attention(x.q, x.k, x.v, batch, options);
    const at::Tensor loss = out.square().sum() + lse.sin().sum();
    results.push_back(torch::autograd::grad({loss}, {x.q, x.k, x.v}));
    results.back().push_back(out.detach());
    results.back().push_back(lse.detach());
  }
  for (std::size_t i = 0; i < results[0].size(); ++i) {
    EXPECT_TRUE(at::allclose(results[0][i], results[1][i], 1e-5, 1e-5)) << i;
  }
}

TEST(Attention, NoGradientWithoutAskingForIt) {
  const Inputs x = inputs(30);
  const at::NoGradGuard no_gradients;
  auto [out, lse] = attention(x.q, x.k, x.v, batch_of({0, 30}, 30), moba_options(8, 2));
  EXPECT_FALSE(out.requires_grad());
  EXPECT_FALSE(lse.requires_grad());
}

TEST(Attention, GradientOfOneInputAlone) {
  const Inputs x = inputs(30);
  auto [out, lse] = attention(x.q.detach(), x.k, x.v.detach(), batch_of({0, 30}, 30), moba_options(8, 2));
  const at::Tensor dk = torch::autograd::grad({out.sum()}, {x.k})[0];
  EXPECT_GT(dk.abs().max().item<float>(), 0.0F);
}

TEST(Attention, ErrorsAreOfTheLibrary) {
  const Inputs x = inputs(30);
  const SequenceBatch batch = batch_of({0, 30}, 30);
  expect_error([&] { attention(x.q[0], x.k, x.v, batch, moba_options(8, 2)); }, "q is of shape");
  expect_error([&] { attention(x.q, x.k, x.v.to(at::kHalf), batch, moba_options(8, 2)); }, "v is of dtype");
  expect_error([&] { attention(x.q, x.k, x.v, batch, moba_options(0, 2)); }, "block_size is 0");
  expect_error([&] { attention(x.q, x.k, x.v, batch, moba_options(8, 0)); }, "top_k is 0");
  AttentionOptions window;
  window.kind = Kind::kWindow;
  expect_error([&] { attention(x.q, x.k, x.v, batch, window); }, "window is 0");
  expect_error([&] { attention(x.q, x.k, x.v, batch_of({0, 31}, 40), moba_options(8, 2), true); }, "cu_seqlens_q[1]");
  expect_error([&] { attention(x.q, x.k, x.v, batch_of({0, 30}, 29), moba_options(8, 2), true); }, "max_seqlen_q");
}

TEST(Attention, SelfCheck) {
  for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    const Inputs x = inputs(70, dtype);
    const SelfCheckReport report = self_check(x.q, x.k, x.v, batch_of({0, 30, 70}, 40), moba_options(8, 3));
    EXPECT_TRUE(report.passed) << report.summary();
  }
}

TEST(KvCache, DecodeIsOneShot) {
  const Inputs x = inputs(50);
  const at::NoGradGuard no_gradients;
  const AttentionOptions options = moba_options(8, 3);
  auto [whole, whole_lse] = attention(x.q, x.k, x.v, batch_of({0, 50}, 50), options);
  KvCache cache(64, 2, 32, 16, options, x.k.options());
  cache.append(x.k.narrow(0, 0, 13), x.v.narrow(0, 0, 13));
  for (std::int64_t token = 13; token < 50; ++token) {
    cache.append(x.k.narrow(0, token, 1), x.v.narrow(0, token, 1));
    auto [out, lse] = cache.attend(x.q.narrow(0, token, 1), options);
    EXPECT_TRUE(at::allclose(out, whole.narrow(0, token, 1), 1e-5, 1e-5)) << token;
    EXPECT_TRUE(at::allclose(lse, whole_lse.narrow(1, token, 1), 1e-5, 1e-5)) << token;
  }
  EXPECT_EQ(cache.length(), 50);
  cache.truncate(20);
  EXPECT_EQ(cache.length(), 20);
  expect_error([&] { cache.append(x.k, x.v); }, "number of new tokens is 50");
  EXPECT_EQ(cache.length(), 20);
  expect_error([&] { cache.truncate(21); }, "length is 21");
}

}  // namespace
}  // namespace moba::torch_ops
