// Groups of near-identical made-up facts.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lm/config/train_config.h"
#include "lm/data/lexicon.h"
#include "lm/data/random.h"

namespace moba::lm {

/// "Beginning of a sentence" + " " + value + terminator.
struct WovenFact {
  std::string beginning, value;
  char terminator = '.';
};

/// What ends a value: mostly a full stop.
char draw_terminator(Random& random);

/// 1 to 5 facts that share a sentence pattern; fillers and values differ. In 30 % of the groups with two fillers one is
/// shared by all, so that only the other tells the facts apart.
std::vector<WovenFact> draw_fact_group(Random& random, std::span<const std::uint8_t> library, const Lexicon& lexicon,
                                       const RecallConfig& config);

}  // namespace moba::lm
