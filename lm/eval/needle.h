// Needle in a haystack: facts hidden in real text, asked by their own beginning, answered by greedy continuation.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "lm/eval/needle_result.h"
#include "lm/model/model.h"
#include "lm/tokenizer/tokenizer.h"

namespace moba::lm {

struct NeedleProgress {
  std::string attention;
  std::int64_t length = 0;
  std::int64_t done = 0, total = 0;  // tokens of all the plan's haystacks
};

/// Runs every (length, depth) for one plan. Each haystack is read once and asked `needles` facts: the question is
/// appended, answered and truncated away. The facts of a depth stand within half a step of it; their distractors stand
/// anywhere. Every prompt has exactly `length` tokens. `texts` are the contents of the haystack files. The same options
/// give the same prompts under every plan and on every platform.
std::vector<NeedleResult> run_needle(Model& model, const Tokenizer& tokenizer, const AttentionPlan& plan,
                                     const std::string& attention_name, const std::vector<std::string>& texts,
                                     const NeedleOptions& options,
                                     const std::function<void(const NeedleProgress&)>& progress);

}  // namespace moba::lm
