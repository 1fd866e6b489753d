#include "lm/data/facts.h"

#include <algorithm>
#include <array>

#include "lm/data/invented.h"
#include "lm/data/patterns.h"

namespace moba::lm {
namespace {

// 1, 2, 3, 4, 5 facts: mostly three and more, because those that share a sentence teach to read its names.
constexpr std::array<double, 5> kGroupSizes = {0.14, 0.16, 0.25, 0.25, 0.2};
constexpr double kSharedFiller = 0.3;  // of the groups with two fillers
constexpr double kSameKind = 0.75;     // all values of the group of one kind
constexpr double kSameLength = 0.7;    // all numbers of the group of one length
constexpr int kTries = 12;             // to draw something that is not in the group yet

std::string draw_filler(Random& random, bool name, const Lexicon& lexicon) {
  return name ? draw_name(random, lexicon) : draw_word(random, lexicon);
}

std::vector<std::string> draw_fillers(Random& random, const Pattern& pattern, const Lexicon& lexicon) {
  std::vector<std::string> fillers;
  for (const bool name : pattern.filler_is_name) fillers.push_back(draw_filler(random, name, lexicon));
  return fillers;
}

}  // namespace

char draw_terminator(Random& random) {
  constexpr std::array<double, 6> kWeights = {0.8, 0.08, 0.04, 0.04, 0.02, 0.02};
  return ".\n;!, "[random.weighted(kWeights)];
}

std::vector<WovenFact> draw_fact_group(Random& random, std::span<const std::uint8_t> library, const Lexicon& lexicon,
                                       const RecallConfig& config) {
  const Pattern pattern = draw_pattern(random, library, lexicon);
  const std::size_t size = 1 + random.weighted(kGroupSizes);
  const std::vector<std::string> first_fillers = draw_fillers(random, pattern, lexicon);
  const bool shared = pattern.fillers() == 2 && random.chance(kSharedFiller);
  const std::size_t shared_filler = random.below(2);
  const ValueKind kind = draw_value_kind(random, config);
  const bool same_kind = random.chance(kSameKind);
  const bool same_length = kind == ValueKind::kDigits && random.chance(kSameLength);
  const char terminator = draw_terminator(random);

  std::vector<WovenFact> group;
  const auto known = [&group](auto member, const std::string& text) {
    return std::any_of(group.begin(), group.end(), [&](const WovenFact& fact) { return fact.*member == text; });
  };
  for (int tries = 0; group.size() < size && tries < kTries; ++tries) {
    std::vector<std::string> fillers = group.empty() ? first_fillers : draw_fillers(random, pattern, lexicon);
    if (shared) fillers[shared_filler] = first_fillers[shared_filler];
    WovenFact fact{pattern.beginning(fillers), "", terminator};
    const ValueKind own_kind = same_kind ? kind : draw_value_kind(random, config);
    for (int value_tries = 0; value_tries < kTries; ++value_tries) {
      fact.value = draw_value(random, own_kind, lexicon);
      if (!same_length || group.empty() || fact.value.size() == group[0].value.size()) break;
    }
    if (known(&WovenFact::beginning, fact.beginning) || known(&WovenFact::value, fact.value)) continue;
    group.push_back(std::move(fact));
  }
  return group;
}

}  // namespace moba::lm
