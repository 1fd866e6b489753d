// Reading a prompt in chunks and writing a continuation token by token.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "lm/model/model.h"
#include "lm/tokenizer/tokenizer.h"

namespace moba::lm {

struct SamplingOptions {
  std::int64_t max_new_tokens = 128;
  double temperature = 0.0;  // 0: the most likely token
  std::int64_t top_k = 0;    // 0: off
  double top_p = 1.0;        // 1: off
  double min_p = 0.0;        // 0: off
  std::uint64_t seed = 0;
  std::vector<std::string> stop;  // the continuation ends before any of these
};

/// Error names the option that is out of range, its value and the rule.
void check_sampling(const SamplingOptions& options);

/// Reads tokens into `state`, `chunk` at a time, so that memory is bounded; returns the logits [vocab] of the last one.
/// `progress(done, total)` is called after each chunk and may be empty. Error when there are no tokens, or more than
/// the state has room for (nothing is read then).
torch::Tensor prefill(Model& model, const AttentionPlan& plan, DecodeState& state,
                      const std::vector<std::int64_t>& tokens, std::int64_t chunk = 4096,
                      const std::function<void(std::int64_t, std::int64_t)>& progress = {});

/// Continues after `logits` (of the last token in `state`); `emit` gets each new piece of text as soon as it is certain
/// (stop strings and UTF-8 characters are held back until whole). Returns the new tokens, the end token not among them.
/// `decode_plan` may differ from the plan of the prefill (full attention at decode). The state grows by all new tokens
/// but the last, and needs room for max_new_tokens - 1. Rows that pad the head beyond the tokenizer's vocabulary are
/// never chosen.
std::vector<std::int64_t> generate(Model& model, const AttentionPlan& decode_plan, DecodeState& state,
                                   const Tokenizer& tokenizer, torch::Tensor logits, const SamplingOptions& options,
                                   const std::function<void(std::string_view)>& emit);

}  // namespace moba::lm
