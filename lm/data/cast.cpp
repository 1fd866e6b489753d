#include "lm/data/cast.h"

#include "lm/data/invented.h"

namespace moba::lm {
namespace {

constexpr double kSmallCompany = 0.5;                      // of the sequences
constexpr std::int64_t kFewestNames = 4, kMostNames = 40;  // of each kind in a company
constexpr double kFullName = 0.75;                         // of the names of a company: first and last

std::vector<std::string> draw_names(Random& random, const Lexicon& lexicon) {
  std::vector<std::string> names(static_cast<std::size_t>(random.between(kFewestNames, kMostNames)));
  for (std::string& name : names) name = draw_single_name(random, lexicon);
  return names;
}

}  // namespace

Cast::Cast(Random& random, const Lexicon& lexicon) : lexicon_(lexicon) {
  if (!random.chance(kSmallCompany)) return;
  first_names_ = draw_names(random, lexicon);
  last_names_ = draw_names(random, lexicon);
}

std::string Cast::draw_name(Random& random) const {
  if (first_names_.empty()) return lm::draw_name(random, lexicon_);
  if (random.chance(kFullName)) return random.pick(first_names_) + " " + random.pick(last_names_);
  return random.pick(random.chance(0.5) ? first_names_ : last_names_);
}

}  // namespace moba::lm
