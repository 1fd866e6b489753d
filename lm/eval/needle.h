// Needle in a haystack: facts hidden in real text, asked by their own beginning, answered by greedy continuation.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "lm/model/model.h"
#include "lm/tokenizer/tokenizer.h"

namespace moba::lm {

struct NeedleOptions {
  std::vector<std::int64_t> lengths;  // tokens of the whole prompt
  std::int64_t depths = 5;            // needle positions from 0 to 1, evenly
  std::int64_t needles = 5;           // trials for each (length, depth)
  std::int64_t distractors = 3;       // near-identical sentences beside each needle
  std::uint64_t seed = 0;
};

/// One cell of the result: a length and a depth under one attention plan.
struct NeedleResult {
  std::string attention;  // "full", "moba", "model"
  std::int64_t length = 0;
  double depth = 0;
  std::int64_t trials = 0;
  std::int64_t correct = 0;
  double seconds = 0;               // median time to read the prompt
  std::vector<std::string> misses;  // "asked … expected … got …", at most a few
};

struct NeedleProgress {
  std::string attention;
  std::int64_t length = 0, done = 0, total = 0;
};

/// Runs every (length, depth) for one plan. Each haystack is read once and asked `needles` facts: the question is
/// appended, answered and truncated away. `texts` are the contents of the haystack files.
std::vector<NeedleResult> run_needle(Model& model, const Tokenizer& tokenizer, const AttentionPlan& plan,
                                     const std::string& attention_name, const std::vector<std::string>& texts,
                                     const NeedleOptions& options,
                                     const std::function<void(const NeedleProgress&)>& progress);

}  // namespace moba::lm
