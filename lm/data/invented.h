// Words, names, numbers and codes that no text holds: what facts are made of.
#pragma once

#include <cstddef>
#include <string>

#include "lm/config/train_config.h"
#include "lm/data/lexicon.h"
#include "lm/data/random.h"

namespace moba::lm {

enum class ValueKind { kDigits, kMadeUpWord, kDictionaryWord, kName, kCode };

/// The kind of a value, drawn by the weights of the config.
ValueKind draw_value_kind(Random& random, const RecallConfig& config);

/// A value of that kind: 3 to 7 digits; a word of 2 to 4 (rarely 5) syllables, sometimes capitalised; …
std::string draw_value(Random& random, ValueKind kind, const Lexicon& lexicon);

/// A word of `syllables` syllables, lower-case. Each word draws its own small set of sounds from a large one, or is
/// spliced from real words, so that its kind is endless too.
std::string invent_word(Random& random, std::size_t syllables, const Lexicon& lexicon);

/// Real or invented, one word, capitalised.
std::string draw_single_name(Random& random, const Lexicon& lexicon);

/// Real or invented, of one or two words, capitalised.
std::string draw_name(Random& random, const Lexicon& lexicon);

/// A real word; an invented one where the text had too few.
std::string draw_word(Random& random, const Lexicon& lexicon);

/// `word` with its first letter, if it is a-z, made a capital.
std::string capitalised(std::string word);

}  // namespace moba::lm
