// One model run by one attention plan: the time to read a prompt, and to write a token after it.
#pragma once

#include <cstdint>
#include <vector>

#include "lm/model/model.h"

namespace moba::app {

/// Reads `prompt` as `moba generate` does, only the last token's logits asked for, and goes on from there.
class ModelSpeed {
 public:
  /// Room for the prompt and `new_tokens` after it.
  ModelSpeed(lm::Model& model, const lm::AttentionPlan& plan, std::vector<std::int64_t> prompt,
             std::int64_t new_tokens);

  /// Compares the last token's logits of the beginning of the prompt, read in chunks with nothing else asked, with
  /// those of a pass that asks for every token's. Throws moba::Error (kMismatch) where they differ by more than
  /// `tolerance` of the greatest logit; returns the difference.
  double verify(double tolerance);

  /// Seconds to read the prompt anew.
  double read();
  /// Milliseconds of each token written after the prompt, which must have been read; forgets them again.
  std::vector<double> write();

 private:
  lm::Model& model_;
  const lm::AttentionPlan& plan_;
  std::vector<std::int64_t> prompt_;
  std::int64_t new_tokens_;
  lm::DecodeState state_;
};

}  // namespace moba::app
