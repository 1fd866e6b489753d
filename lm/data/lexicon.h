// Words and names of a body of text, for facts that sound like it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace moba::lm {

struct Lexicon {
  std::vector<std::string> words;  // lower-case, 3 to 12 letters, sorted
  std::vector<std::string> names;  // words only seen capitalised inside sentences, sorted
};

/// Reads evenly spaced samples of `text`, 8 MB at most: about half a second. The same text gives the same lexicon.
Lexicon build_lexicon(std::span<const std::uint8_t> text);

}  // namespace moba::lm
