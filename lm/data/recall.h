// The recall source: made-up facts woven into text, each asked again later by its own sentence.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lm/config/train_config.h"
#include "lm/data/lexicon.h"
#include "lm/data/random.h"

namespace moba::lm {

/// What a byte belongs to.
enum class ByteKind : std::uint8_t {
  kText = 0,    // the text itself
  kFact = 1,    // a woven sentence, but for
  kAnswer = 2,  // the value, and what ends it, of a sentence that stood before: it can be known
};

struct ByteRange {
  std::int64_t begin = 0, end = 0;
};

struct WovenText {
  std::string text;
  std::vector<ByteKind> kinds;     // one a byte
  std::vector<ByteRange> answers;  // the runs of kAnswer, ascending
};

/// How many facts a sequence usually holds: 10 in 2 K bytes, 30 in 8 K, 50 in 16 K, 80 in 32 K, 120 in 64 K; between,
/// and beyond, on straight lines in log-log.
double usual_facts(std::int64_t length);

/// Exactly `length` bytes: `haystack` (at least `length` bytes) with groups of 1 to 5 facts put in at sentence ends.
/// The facts of a group share their sentence and differ in its fillers and values. Each stands once, and with
/// probability config.repeat_probability again later: after a space or a blank line, anywhere behind it or at the very
/// end. `library` is the text from which sentence beginnings are taken. length >= kShortestRecallSequence.
WovenText weave_facts(Random& random, std::span<const std::uint8_t> haystack, std::int64_t length,
                      std::span<const std::uint8_t> library, const Lexicon& lexicon, const RecallConfig& config);

}  // namespace moba::lm
