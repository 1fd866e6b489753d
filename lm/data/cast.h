// The names that the facts of one sequence are about.
#pragma once

#include <string>
#include <vector>

#include "lm/data/lexicon.h"
#include "lm/data/random.h"

namespace moba::lm {

/// In half of the sequences names are without end. In the others a small company of first and last names comes again
/// and again, so that neither a name nor a sentence alone tells which fact is meant, only the two together.
class Cast {
 public:
  /// The lexicon outlives this.
  Cast(Random& random, const Lexicon& lexicon);

  /// One or two words, capitalised.
  std::string draw_name(Random& random) const;

 private:
  const Lexicon& lexicon_;
  std::vector<std::string> first_names_, last_names_;  // both empty: names without end
};

}  // namespace moba::lm
