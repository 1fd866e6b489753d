#include "lm/data/invented.h"

#include <array>
#include <string_view>

namespace moba::lm {
namespace {

// Below this many words a text's own are too few to draw from: they would come again and again.
constexpr std::size_t kEnoughWords = 200;

constexpr std::array<std::string_view, 64> kOnsets = {
    "b",  "c",  "d",  "f",  "g",  "h",  "j",  "k",  "l",  "m",  "n",  "p",  "q",  "r",  "s",   "t",
    "v",  "w",  "x",  "y",  "z",  "",   "bl", "br", "ch", "cl", "cr", "dr", "dw", "fl", "fr",  "gh",
    "gl", "gn", "gr", "kh", "kl", "kr", "kw", "ll", "ph", "pl", "pr", "qu", "rh", "sc", "sh",  "sk",
    "sl", "sm", "sn", "sp", "st", "sv", "sw", "th", "tr", "ts", "tw", "vl", "wh", "zh", "str", "thr"};
constexpr std::array<std::string_view, 28> kVowels = {"a",  "e",  "i",  "o",  "u",  "y",  "aa", "ae", "ai", "au",
                                                      "ay", "ea", "ee", "ei", "eo", "eu", "ia", "ie", "io", "iu",
                                                      "oa", "oe", "oi", "oo", "ou", "ua", "ue", "ui"};
constexpr std::array<std::string_view, 40> kCodas = {"b",  "c",  "d",  "f",  "g",  "h",  "k",  "l",  "m",  "n",
                                                     "p",  "r",  "s",  "t",  "v",  "w",  "x",  "z",  "ck", "ft",
                                                     "ld", "lk", "lm", "ln", "lt", "mb", "mp", "nd", "ng", "nk",
                                                     "nt", "rd", "rk", "rm", "rn", "rt", "sh", "sk", "st", "th"};

// The sounds of one invented word: a few of each list, so that words differ in kind and not only in letters.
struct Sounds {
  std::array<std::string_view, 6> onsets;
  std::array<std::string_view, 4> vowels;
  std::array<std::string_view, 4> codas;
  double coda_chance = 0;  // of a syllable within the word
};

Sounds draw_sounds(Random& random) {
  Sounds sounds;
  const bool plain = random.chance(0.5);  // single letters only
  for (std::string_view& onset : sounds.onsets) onset = kOnsets[random.below(plain ? 21 : kOnsets.size())];
  for (std::string_view& vowel : sounds.vowels) vowel = kVowels[random.below(plain ? 5 : kVowels.size())];
  for (std::string_view& coda : sounds.codas) coda = kCodas[random.below(plain ? 18 : kCodas.size())];
  sounds.coda_chance = random.uniform() * 0.6;
  return sounds;
}

// "ravoki", "melun": a consonant and a vowel each, one consonant at the end at most.
std::string from_letters(Random& random, std::size_t syllables) {
  constexpr std::string_view kConsonants = "bcdfghjklmnpqrstvwxyz", kPlainVowels = "aeiou";
  std::string word;
  for (std::size_t i = 0; i < syllables; ++i) {
    if (i > 0 || random.chance(0.9)) word += random.pick(kConsonants);
    word += random.pick(kPlainVowels);
  }
  if (random.chance(0.4)) word += random.pick(kConsonants);
  return word;
}

std::string from_sounds(Random& random, std::size_t syllables) {
  const Sounds sounds = draw_sounds(random);
  std::string word;
  for (std::size_t i = 0; i < syllables; ++i) {
    // One in four syllables leaves the word's own sounds.
    const bool own = random.chance(0.75);
    word += own ? random.pick(sounds.onsets) : random.pick(kOnsets);
    word += own ? random.pick(sounds.vowels) : random.pick(kVowels);
    const double coda_chance = i + 1 == syllables ? 0.5 : sounds.coda_chance;
    if (random.chance(coda_chance)) word += own ? random.pick(sounds.codas) : random.pick(kCodas);
  }
  return word;
}

// The beginning of one real word and the end of another, one letter sometimes changed.
std::string spliced(Random& random, const Lexicon& lexicon) {
  const std::string& head = random.pick(lexicon.words);
  const std::string& tail = random.pick(lexicon.words);
  std::string word = head.substr(0, 2 + random.below(std::min<std::size_t>(head.size() - 1, 5)));
  word += tail.substr(tail.size() - std::min<std::size_t>(tail.size(), 2 + random.below(4)));
  if (random.chance(0.5)) word[random.below(word.size())] = static_cast<char>('a' + random.below(26));
  return word;
}

std::string digits(Random& random, std::int64_t length) {
  std::string number(1, static_cast<char>('1' + random.below(9)));
  while (static_cast<std::int64_t>(number.size()) < length) number += static_cast<char>('0' + random.below(10));
  return number;
}

// "KX-482", "b7f3", "Q19/B", "44-TRN": groups of letters or digits with or without a mark between.
std::string code(Random& random) {
  constexpr std::array<std::string_view, 6> kMarks = {"", "", "-", "-", "/", "."};
  const std::string_view mark = random.pick(kMarks);
  const bool capitals = random.chance(0.7);
  constexpr std::size_t kShortest = 4;  // shorter ones are guessed, not recalled
  const std::int64_t groups = random.between(2, 3);
  bool letters = random.chance(0.6);
  std::string text;
  for (std::int64_t i = 0; i < groups || text.size() < kShortest; ++i) {
    if (i > 0) text += mark;
    const std::int64_t length = random.between(1, letters ? 3 : 4);
    for (std::int64_t j = 0; j < length; ++j) {
      text += static_cast<char>(letters ? (capitals ? 'A' : 'a') + random.below(26) : '0' + random.below(10));
    }
    letters = !letters;
  }
  return text;
}

std::size_t draw_syllables(Random& random) {
  constexpr std::array<double, 4> kWeights = {0.36, 0.36, 0.23, 0.05};  // 2, 3, 4, 5
  return 2 + random.weighted(kWeights);
}

}  // namespace

std::string capitalised(std::string word) {
  if (!word.empty() && word[0] >= 'a' && word[0] <= 'z') word[0] = static_cast<char>(word[0] - 'a' + 'A');
  return word;
}

std::string invent_word(Random& random, std::size_t syllables, const Lexicon& lexicon) {
  if (lexicon.words.size() >= kEnoughWords && random.chance(0.2)) return spliced(random, lexicon);
  if (random.chance(0.3)) return from_letters(random, syllables);
  return from_sounds(random, syllables);
}

std::string draw_single_name(Random& random, const Lexicon& lexicon) {
  if (lexicon.names.size() >= kEnoughWords && random.chance(0.5)) return random.pick(lexicon.names);
  return capitalised(invent_word(random, 2 + random.below(2), lexicon));
}

std::string draw_name(Random& random, const Lexicon& lexicon) {
  std::string name = draw_single_name(random, lexicon);
  if (random.chance(0.55)) name += " " + draw_single_name(random, lexicon);
  return name;
}

std::string draw_word(Random& random, const Lexicon& lexicon) {
  if (lexicon.words.size() >= kEnoughWords) return random.pick(lexicon.words);
  return invent_word(random, 2 + random.below(2), lexicon);
}

ValueKind draw_value_kind(Random& random, const RecallConfig& config) {
  const std::array<double, 5> weights = {config.digits, config.made_up_words, config.dictionary_words, config.names,
                                         config.codes};
  return static_cast<ValueKind>(random.weighted(weights));
}

std::string draw_value(Random& random, ValueKind kind, const Lexicon& lexicon) {
  switch (kind) {
    case ValueKind::kDigits: return digits(random, random.between(3, 7));
    case ValueKind::kMadeUpWord: {
      std::string word = invent_word(random, draw_syllables(random), lexicon);
      return random.chance(0.25) ? capitalised(std::move(word)) : word;
    }
    case ValueKind::kDictionaryWord: return draw_word(random, lexicon);
    case ValueKind::kName: return draw_name(random, lexicon);
    case ValueKind::kCode: break;
  }
  return code(random);
}

}  // namespace moba::lm
