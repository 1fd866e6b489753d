#include "lm/generate/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "moba/error.h"

namespace moba::lm {
namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, message);
}

struct Candidate {
  double value;  // logit, then probability
  std::int64_t token;
};

/// Likelier first; of equals the lower id.
bool before(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.token < b.token;
}

}  // namespace

void check_sampling(const SamplingOptions& options) {
  if (options.max_new_tokens < 0) refuse(fmt::format("max_new_tokens={} must not be negative", options.max_new_tokens));
  if (!(options.temperature >= 0.0) || !std::isfinite(options.temperature)) {
    refuse(
        fmt::format("temperature={} must be a finite number, 0 (the likeliest token) or above", options.temperature));
  }
  if (options.top_k < 0) refuse(fmt::format("top_k={} must be 0 (off) or above", options.top_k));
  if (!(options.top_p > 0.0 && options.top_p <= 1.0)) {
    refuse(fmt::format("top_p={} must be above 0 and at most 1 (off)", options.top_p));
  }
  if (!(options.min_p >= 0.0 && options.min_p <= 1.0))
    refuse(fmt::format("min_p={} must be from 0 (off) to 1", options.min_p));
  for (const std::string& stop : options.stop) {
    if (stop.empty()) refuse("stop: a stop string must not be empty");
  }
}

Sampler::Sampler(const SamplingOptions& options)
    : temperature_(options.temperature),
      top_p_(options.top_p),
      min_p_(options.min_p),
      top_k_(options.top_k),
      state_(options.seed) {
  check_sampling(options);
}

double Sampler::uniform() {
  // SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
  state_ += 0x9E3779B97F4A7C15ULL;
  std::uint64_t bits = state_;
  bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9ULL;
  bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBULL;
  bits ^= bits >> 31;
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

std::int64_t Sampler::choose(const torch::Tensor& logits) {
  if (logits.dim() != 1 || logits.numel() < 1) refuse("logits: needed: one row [vocab]");
  const torch::Tensor row = logits.detach().to(torch::kCPU, torch::kFloat64).contiguous();
  const double* values = row.data_ptr<double>();
  std::vector<Candidate> candidates(static_cast<std::size_t>(row.numel()));
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (std::isnan(values[i]))
      refuse(fmt::format("the model's logits hold a NaN (token {}): its weights are broken", i));
    candidates[i] = {values[i], static_cast<std::int64_t>(i)};
  }
  if (temperature_ == 0.0) return std::min_element(candidates.begin(), candidates.end(), before)->token;

  std::sort(candidates.begin(), candidates.end(), before);
  if (top_k_ > 0) candidates.resize(std::min(candidates.size(), static_cast<std::size_t>(top_k_)));
  const double largest = candidates.front().value;
  double sum = 0.0;
  for (Candidate& candidate : candidates) {
    // An infinite logit would make inf - inf; the likeliest token weighs 1 whatever it is.
    candidate.value = candidate.value == largest ? 1.0 : std::exp((candidate.value - largest) / temperature_);
    sum += candidate.value;
  }
  double kept = 0.0;
  std::size_t count = 0;
  while (count < candidates.size()) {
    const bool enough_mass = count > 0 && kept >= top_p_ * sum;
    const bool too_unlikely = candidates[count].value < min_p_;  // relative to the largest, which weighs 1
    if (enough_mass || too_unlikely) break;
    kept += candidates[count++].value;
  }
  double target = uniform() * kept;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    target -= candidates[i].value;
    if (target < 0.0) return candidates[i].token;
  }
  return candidates[count - 1].token;
}

}  // namespace moba::lm
