// Sentence patterns without end: beginnings of real sentences and random words, with places for fillers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lm/data/invented.h"
#include "lm/data/lexicon.h"
#include "lm/data/random.h"

namespace moba::lm {

/// A sentence up to its value. `parts` has one entry more than `fillers`: part, filler, part, …, part.
struct Pattern {
  std::vector<std::string> parts;
  std::vector<bool> filler_is_name;

  std::size_t fillers() const { return filler_is_name.size(); }
  /// The sentence up to its value, without a space after it, with the fillers in their places; begins with a capital
  /// where it can.
  std::string beginning(const std::vector<std::string>& fillers) const;
};

/// Half from real sentences of `text` (5 to 18 words, inner commas kept), half random words with function words
/// between; one or two fillers; often a linking phrase at the end.
Pattern draw_pattern(Random& random, std::span<const std::uint8_t> text, const Lexicon& lexicon);

/// The phrases that may stand between a pattern and its value, for tests: none may stand in an evaluation's sentences.
std::span<const std::string_view> linking_phrases();

}  // namespace moba::lm
