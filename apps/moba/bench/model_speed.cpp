#include "bench/model_speed.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "bench/reference_rows.h"
#include "bench/timing.h"
#include "lm/generate/generate.h"
#include "lm/util/device.h"
#include "moba/error.h"

namespace moba::app {

ModelSpeed::ModelSpeed(lm::Model& model, const lm::AttentionPlan& plan, std::vector<std::int64_t> prompt,
                       std::int64_t new_tokens)
    : model_(model),
      plan_(plan),
      prompt_(std::move(prompt)),
      new_tokens_(new_tokens),
      state_(model->config(), plan, static_cast<std::int64_t>(prompt_.size()) + new_tokens,
             model->parameters().front().options()) {}

double ModelSpeed::verify(double tolerance) {
  constexpr std::size_t kMost = 2048, kChunk = 600;
  const std::vector<std::int64_t> tokens(prompt_.begin(), prompt_.begin() + std::min(prompt_.size(), kMost));
  state_.truncate(0);
  const torch::Tensor asked = lm::prefill(model_, plan_, state_, tokens, kChunk);
  state_.truncate(0);
  const torch::Tensor all = model_->forward_cached(torch::tensor(tokens).to(asked.device()), plan_, state_,
                                                   static_cast<std::int64_t>(tokens.size()));
  const double error = relative_error(asked, all[-1]);
  if (!(error <= tolerance)) {  // written so that NaN fails
    throw Error(
        ErrorCode::kMismatch,
        fmt::format("{}: the last token's logits differ by {:g} of the greatest, more than {:g}, from those of a "
                    "pass over every token's; a wrong answer is not timed",
                    plan_.summary(), error, tolerance));
  }
  return error;
}

double ModelSpeed::read() {
  state_.truncate(0);
  return 1e-3 * milliseconds(1, [&](int) {
           const torch::Tensor logits = lm::prefill(model_, plan_, state_, prompt_);
           lm::synchronize(logits.device());
         });
}

std::vector<double> ModelSpeed::write() {
  const std::int64_t length = state_.length();
  const torch::Tensor token = torch::tensor({prompt_.back()}).to(model_->parameters().front().device());
  std::vector<double> times;
  for (std::int64_t i = 0; i < new_tokens_; ++i) {
    times.push_back(milliseconds(1, [&](int) {
      model_->forward_cached(token, plan_, state_, 1);
      lm::synchronize(token.device());
    }));
  }
  state_.truncate(length);
  return times;
}

}  // namespace moba::app
