#include "lm/data/facts.h"

#include <algorithm>
#include <array>

#include "lm/data/invented.h"
#include "lm/data/patterns.h"

namespace moba::lm {
namespace {

// 1, 2, 3, 4, 5 facts: mostly four and more, because those that share a sentence teach to read its names.
constexpr std::array<double, 5> kGroupSizes = {0.05, 0.08, 0.2, 0.4, 0.27};
constexpr double kSharedFiller = 0.3;  // of the groups with two fillers
constexpr double kKin = 0.2;           // of the groups: names share a word
constexpr double kSameKind = 0.75;     // all values of the group of one kind
constexpr double kSameLength = 0.7;    // all numbers of the group of one length
constexpr int kGroupTries = 12;        // to draw something that is not in the group yet

std::vector<std::string> draw_fillers(Random& random, const Pattern& pattern, const Lexicon& lexicon,
                                      const Cast& cast) {
  std::vector<std::string> fillers;
  for (const bool name : pattern.filler_is_name) {
    fillers.push_back(name ? cast.draw_name(random) : draw_word(random, lexicon));
  }
  return fillers;
}

enum class Kin { kNone, kFirstName, kLastName };

// `name` with its first or last word in place of that of `relative`; unchanged unless both have two words.
std::string related(const std::string& name, const std::string& relative, Kin kin) {
  const std::size_t space = name.find(' '), relative_space = relative.find(' ');
  if (kin == Kin::kNone || space == std::string::npos || relative_space == std::string::npos) return name;
  return kin == Kin::kFirstName ? relative.substr(0, relative_space) + name.substr(space)
                                : name.substr(0, space) + relative.substr(relative_space);
}

// What ends the values of a group: mostly a full stop.
char draw_terminator(Random& random) {
  constexpr std::array<double, 6> kWeights = {0.8, 0.08, 0.04, 0.04, 0.02, 0.02};
  return ".\n;!, "[random.weighted(kWeights)];
}

}  // namespace

std::vector<WovenFact> draw_fact_group(Random& random, std::span<const std::uint8_t> library, const Lexicon& lexicon,
                                       const Cast& cast, const RecallConfig& config) {
  const Pattern pattern = draw_pattern(random, library, lexicon);
  const std::size_t size = 1 + random.weighted(kGroupSizes);
  const std::vector<std::string> first_fillers = draw_fillers(random, pattern, lexicon, cast);
  const bool shared = pattern.fillers() == 2 && random.chance(kSharedFiller);
  const std::size_t shared_filler = random.below(2);
  const Kin kin = !random.chance(kKin) ? Kin::kNone : random.chance(0.5) ? Kin::kFirstName : Kin::kLastName;
  const ValueKind kind = draw_value_kind(random, config);
  const bool same_kind = random.chance(kSameKind);
  const bool same_length = kind == ValueKind::kDigits && random.chance(kSameLength);
  const char terminator = draw_terminator(random);

  std::vector<WovenFact> group;
  const auto known = [&group](auto member, const std::string& text) {
    return std::any_of(group.begin(), group.end(), [&](const WovenFact& fact) { return fact.*member == text; });
  };
  for (int tries = 0; group.size() < size && tries < kGroupTries; ++tries) {
    std::vector<std::string> fillers = group.empty() ? first_fillers : draw_fillers(random, pattern, lexicon, cast);
    for (std::size_t i = 0; i < fillers.size(); ++i) {
      if (pattern.filler_is_name[i]) fillers[i] = related(fillers[i], first_fillers[i], kin);
    }
    if (shared) fillers[shared_filler] = first_fillers[shared_filler];
    WovenFact fact{pattern.beginning(fillers), "", terminator};
    const ValueKind own_kind = same_kind ? kind : draw_value_kind(random, config);
    for (int value_tries = 0; value_tries < kGroupTries; ++value_tries) {
      fact.value = draw_value(random, own_kind, lexicon);
      if (!same_length || group.empty() || fact.value.size() == group[0].value.size()) break;
    }
    if (known(&WovenFact::beginning, fact.beginning) || known(&WovenFact::value, fact.value)) continue;
    group.push_back(std::move(fact));
  }
  return group;
}

}  // namespace moba::lm
