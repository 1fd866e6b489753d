// Text loss: nats per token over whole windows, by position, and at the end of the context.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "lm/model/model.h"

namespace moba::lm {

struct LossResult {
  double loss = 0;                  // mean nats per predicted token
  std::int64_t tokens = 0;          // predicted tokens
  std::int64_t windows = 0;         // whole windows read
  std::vector<double> by_position;  // mean loss in `bins` equal parts of the window
  double trailing_loss = 0;         // mean over the last `trailing` tokens of each window
  std::int64_t trailing = 0;
};

/// Cuts each document into whole windows of `length` tokens (a rest is dropped) and predicts tokens 1 … length-1 of
/// each. A window is read in chunks through the key/value cache, so that memory does not grow with length * vocabulary.
/// `progress(done, total)` counts tokens. Errors: kInvalidArgument when length < 2, bins or trailing are not within
/// [1, length - 1], or no document has `length` tokens.
LossResult evaluate_loss(Model& model, const AttentionPlan& plan,
                         const std::vector<std::vector<std::int64_t>>& documents, std::int64_t length,
                         std::int64_t bins, std::int64_t trailing,
                         const std::function<void(std::int64_t, std::int64_t)>& progress);

}  // namespace moba::lm
