// One haystack of the needle test and the questions it is asked.
#pragma once

#include <cstdint>
#include <vector>

#include "lm/eval/haystack.h"
#include "lm/eval/needle.h"
#include "lm/eval/needle_facts.h"
#include "lm/tokenizer/tokenizer.h"

namespace moba::lm {

struct NeedleQuestion {
  Fact fact;
  std::vector<std::int64_t> tokens;
};

/// A haystack and its questions. Prompt i is tokens[0, length - |question i|) and then the question: all prompts have
/// `length` tokens and share the first `common` of them, which are read once.
struct NeedleTrial {
  std::vector<std::int64_t> tokens;
  std::int64_t length = 0;
  std::int64_t common = 0;
  std::vector<NeedleQuestion> questions;
};

/// The haystack of one length and depth; the same for the same options, on every platform.
NeedleTrial make_needle_trial(const Tokenizer& tokenizer, const TextLoop& source, const NeedleOptions& options,
                              std::int64_t length, std::int64_t depth_index);

}  // namespace moba::lm
