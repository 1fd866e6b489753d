// One token from a row of logits.
#pragma once

#include <cstdint>

#include <torch/torch.h>

#include "lm/generate/generate.h"

namespace moba::lm {

/// Chooses tokens by SamplingOptions. The same options and logits give the same tokens on every machine: the generator
/// is our own, and the arithmetic double.
class Sampler {
 public:
  /// Error names the option that is out of range.
  explicit Sampler(const SamplingOptions& options);

  /// logits [vocab], any float dtype and device. Temperature 0: the largest, of equals the lowest id. Else softmax at
  /// the temperature, cut to the top_k likeliest, then to the fewest that hold top_p of the mass (at least one), then
  /// to those with min_p times the largest probability; one is drawn from what is left. Error when the logits hold a
  /// NaN.
  std::int64_t choose(const torch::Tensor& logits);

 private:
  double uniform();  // [0, 1), 53 bits

  double temperature_, top_p_, min_p_;
  std::int64_t top_k_;
  std::uint64_t state_;
};

}  // namespace moba::lm
