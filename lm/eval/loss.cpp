#include "lm/eval/loss.h"

#include <algorithm>

#include <fmt/format.h>

#include "moba/error.h"

namespace moba::lm {
namespace {

/// Tokens read at a time: many enough for large matrix products, few enough that their logits stay below 256 MB.
std::int64_t chunk_of(std::int64_t vocab_size) {
  constexpr std::int64_t kLogitBytes = std::int64_t{256} << 20;
  return std::clamp<std::int64_t>(kLogitBytes / (4 * vocab_size), 128, 4096);
}

void check_within(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value < least || value > most) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: {} is outside [{}, {}]", name, value, least, most));
  }
}

/// Nats of tokens 1 … length-1 of one window, each given those before it: float64 [length - 1] on the CPU.
torch::Tensor window_losses(Model& model, const AttentionPlan& plan, DecodeState& state, const torch::Tensor& tokens,
                            const std::function<void(std::int64_t)>& progress) {
  const std::int64_t length = tokens.size(0);
  const std::int64_t chunk = chunk_of(model->config().vocab_size);
  state.truncate(0);
  std::vector<torch::Tensor> parts;
  // The last token is predicted, never read.
  for (std::int64_t begin = 0; begin < length - 1; begin += chunk) {
    const std::int64_t count = std::min(chunk, length - 1 - begin);
    const torch::Tensor logits = model->forward_cached(tokens.narrow(0, begin, count), plan, state, count);
    parts.push_back(
        torch::nn::functional::cross_entropy(logits, tokens.narrow(0, begin + 1, count),
                                             torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kNone))
            .to(torch::kCPU, torch::kFloat64));
    progress(begin + count);
  }
  return torch::cat(parts);
}

}  // namespace

LossResult evaluate_loss(Model& model, const AttentionPlan& plan,
                         const std::vector<std::vector<std::int64_t>>& documents, std::int64_t length,
                         std::int64_t bins, std::int64_t trailing,
                         const std::function<void(std::int64_t, std::int64_t)>& progress) {
  check_within("length", length, 2, std::int64_t{1} << 40);
  check_within("bins", bins, 1, length - 1);
  check_within("trailing", trailing, 1, length - 1);
  std::int64_t windows = 0;
  std::int64_t longest = 0;
  for (const auto& document : documents) {
    windows += static_cast<std::int64_t>(document.size()) / length;
    longest = std::max(longest, static_cast<std::int64_t>(document.size()));
  }
  if (windows == 0) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("length: no text has {} tokens (the longest has {}); take a smaller length or more text",
                            length, longest));
  }

  const torch::NoGradGuard no_gradients;
  const torch::TensorOptions options = model->parameters().front().options();
  DecodeState state(model->config(), plan, length, options);
  torch::Tensor sums = torch::zeros({length - 1}, torch::kFloat64);  // over windows, by predicted position
  std::int64_t done = 0;
  for (const auto& document : documents) {
    const torch::Tensor all = torch::from_blob(const_cast<std::int64_t*>(document.data()),
                                               {static_cast<std::int64_t>(document.size())}, torch::kInt64);
    for (std::int64_t begin = 0; begin + length <= all.size(0); begin += length) {
      const torch::Tensor tokens = all.narrow(0, begin, length).to(options.device());
      sums += window_losses(model, plan, state, tokens, [&](std::int64_t read) {
        if (progress) progress(done + read, windows * length);
      });
      done += length;
    }
  }

  const torch::Tensor means = sums / static_cast<double>(windows);
  LossResult result;
  result.windows = windows;
  result.tokens = windows * (length - 1);
  result.loss = means.mean().item<double>();
  for (std::int64_t bin = 0; bin < bins; ++bin) {
    const std::int64_t begin = bin * (length - 1) / bins;
    const std::int64_t end = (bin + 1) * (length - 1) / bins;
    result.by_position.push_back(means.narrow(0, begin, end - begin).mean().item<double>());
  }
  result.trailing = trailing;
  result.trailing_loss = means.narrow(0, length - 1 - trailing, trailing).mean().item<double>();
  return result;
}

}  // namespace moba::lm
