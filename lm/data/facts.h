// Groups of near-identical made-up facts.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lm/config/train_config.h"
#include "lm/data/cast.h"
#include "lm/data/lexicon.h"
#include "lm/data/random.h"

namespace moba::lm {

/// "Beginning of a sentence" + " " + value + terminator.
struct WovenFact {
  std::string beginning, value;
  char terminator = '.';
};

/// 1 to 5 facts, mostly 4, that share a sentence pattern; fillers and values differ. In 30 % of the groups with two
/// fillers one is shared by all, and in 20 % of all groups so is the first or the last word of every name: then only
/// what is left tells the facts apart.
std::vector<WovenFact> draw_fact_group(Random& random, std::span<const std::uint8_t> library, const Lexicon& lexicon,
                                       const Cast& cast, const RecallConfig& config);

}  // namespace moba::lm
