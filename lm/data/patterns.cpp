#include "lm/data/patterns.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

namespace moba::lm {
namespace {

constexpr std::int64_t kFewestWords = 5, kMostWords = 18;
constexpr double kEarlyFillers = 0.4;  // of the patterns

constexpr std::array<std::string_view, 48> kLinks = {"was called",
                                                     "is called",
                                                     "bears the number",
                                                     "is named",
                                                     "was named",
                                                     ":",
                                                     "is",
                                                     "was",
                                                     "has the code",
                                                     "had the number",
                                                     "is known as",
                                                     "was known as",
                                                     "answers to",
                                                     "goes by",
                                                     "went by the name",
                                                     "carries the sign",
                                                     "reads",
                                                     "read",
                                                     "is written",
                                                     "was spelled",
                                                     "came to be called",
                                                     "is marked",
                                                     "stands for",
                                                     "means",
                                                     "gave the word",
                                                     "said",
                                                     "whispered",
                                                     "replied",
                                                     "signed as",
                                                     "chose",
                                                     "is kept under",
                                                     "uses the password",
                                                     "became",
                                                     "number",
                                                     "named",
                                                     "called",
                                                     "by the name of",
                                                     "with the number",
                                                     "has as its name",
                                                     "is to be read as",
                                                     "shows",
                                                     "counts",
                                                     "equals",
                                                     "remains",
                                                     "has the title",
                                                     "wrote down",
                                                     "asked for",
                                                     "says:"};

constexpr std::array<std::string_view, 56> kFunctionWords = {
    "the",     "a",       "of",    "in",      "to",     "and",   "with",  "for",      "by",     "at",
    "from",    "on",      "under", "over",    "near",   "into",  "upon",  "through",  "behind", "his",
    "her",     "their",   "our",   "my",      "this",   "that",  "every", "no",       "some",   "which",
    "who",     "when",    "where", "because", "before", "after", "until", "although", "is",     "was",
    "has",     "had",     "would", "could",   "as",     "but",   "or",    "not",      "than",   "between",
    "without", "against", "about", "along",   "its",    "one"};

bool is_space(std::uint8_t c) {
  return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}
bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
bool ends_sentence(std::uint8_t c) {
  return c == '.' || c == '!' || c == '?';
}

// Marks that would stand alone without the rest of their sentence, or that are the markup of a text file.
bool is_stray_mark(char c) {
  return std::string_view("\"()[]{}_*<>|=~^\\").find(c) != std::string_view::npos;
}

// The words from `at` on until a sentence ends or there are enough. Inner commas, semicolons and colons stay.
std::vector<std::string> read_words(std::span<const std::uint8_t> text, std::size_t at, std::int64_t most) {
  std::vector<std::string> words;
  while (at < text.size() && static_cast<std::int64_t>(words.size()) < most) {
    while (at < text.size() && is_space(text[at])) ++at;
    std::string word;
    for (; at < text.size() && !is_space(text[at]); ++at) {
      const char c = static_cast<char>(text[at]);
      if (!is_stray_mark(c)) word += c;
    }
    if (word.empty()) continue;
    const bool last =
        std::any_of(word.begin(), word.end(), [](char c) { return ends_sentence(static_cast<std::uint8_t>(c)); });
    if (last) {
      word.resize(word.find_first_of(".!?"));
      if (!word.empty()) words.push_back(std::move(word));
      break;
    }
    words.push_back(std::move(word));
  }
  return words;
}

// The beginning of some sentence of `text`, or nothing when a few tries found none of the length.
std::optional<std::vector<std::string>> real_beginning(Random& random, std::span<const std::uint8_t> text) {
  constexpr int kSentenceTries = 8;
  constexpr std::size_t kSearch = 600;  // bytes to the next sentence end; a sentence of prose is shorter
  if (text.size() < 2 * kSearch) return std::nullopt;
  for (int attempt = 0; attempt < kSentenceTries; ++attempt) {
    const std::size_t start = random.below(text.size() - kSearch);
    const std::int64_t wanted = random.between(kFewestWords, kMostWords);
    std::size_t at = start;
    while (at + 1 < start + kSearch && !(ends_sentence(text[at]) && is_space(text[at + 1]))) ++at;
    if (at + 1 >= start + kSearch) continue;
    std::vector<std::string> words = read_words(text, at + 1, wanted);
    if (static_cast<std::int64_t>(words.size()) >= kFewestWords) return words;
  }
  return std::nullopt;
}

std::vector<std::string> random_words(Random& random, const Lexicon& lexicon) {
  std::vector<std::string> words;
  const std::int64_t count = random.between(kFewestWords, 14);
  bool function_word = random.chance(0.5);
  while (static_cast<std::int64_t>(words.size()) < count) {
    words.push_back(function_word ? std::string(random.pick(kFunctionWords)) : draw_word(random, lexicon));
    if (!function_word && random.chance(0.12)) words.back() += ",";
    // Mostly in turn; two of a kind now and then.
    if (random.chance(0.8)) function_word = !function_word;
  }
  return words;
}

// The letters of a word without what clings to them: "John's," -> (0, 4).
std::pair<std::size_t, std::size_t> letters_of(const std::string& word) {
  std::size_t begin = 0;
  while (begin < word.size() && !is_letter(word[begin])) ++begin;
  std::size_t end = begin;
  while (end < word.size() && is_letter(word[end])) ++end;
  return {begin, end};
}

// Up to `count` places for fillers, ascending; words of three letters or more where there are any. In `early` patterns
// only the first half of them: the value then stands far behind the words that tell its fact from the others.
std::vector<std::size_t> draw_places(Random& random, const std::vector<std::string>& words, std::size_t count,
                                     bool early) {
  std::vector<std::size_t> candidates;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const auto [begin, end] = letters_of(words[i]);
    if (end - begin >= 3) candidates.push_back(i);
  }
  if (early) candidates.resize(std::max(std::min(count, candidates.size()), candidates.size() / 2));
  if (candidates.empty()) candidates.push_back(words.size() - 1);
  std::vector<std::size_t> places;
  while (places.size() < std::min(count, candidates.size())) {
    const std::size_t place = random.pick(candidates);
    if (std::find(places.begin(), places.end(), place) == places.end()) places.push_back(place);
  }
  std::sort(places.begin(), places.end());
  return places;
}

}  // namespace

std::span<const std::string_view> linking_phrases() {
  return kLinks;
}

std::string Pattern::beginning(const std::vector<std::string>& fillers) const {
  std::string text = parts[0];
  for (std::size_t i = 0; i < fillers.size(); ++i) text += fillers[i] + parts[i + 1];
  return capitalised(std::move(text));
}

Pattern draw_pattern(Random& random, std::span<const std::uint8_t> text, const Lexicon& lexicon) {
  std::optional<std::vector<std::string>> real;
  if (random.chance(0.5)) real = real_beginning(random, text);
  const std::vector<std::string> words = real ? std::move(*real) : random_words(random, lexicon);
  const std::vector<std::size_t> places = draw_places(random, words, 1 + random.below(2), random.chance(kEarlyFillers));

  Pattern pattern;
  pattern.parts.emplace_back();
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (i > 0) pattern.parts.back() += ' ';
    if (std::find(places.begin(), places.end(), i) == places.end()) {
      pattern.parts.back() += words[i];
      continue;
    }
    const auto [begin, end] = letters_of(words[i]);
    pattern.parts.back() += words[i].substr(0, begin);
    pattern.filler_is_name.push_back(random.chance(0.7));
    pattern.parts.push_back(words[i].substr(end));
  }
  if (random.chance(0.6)) {
    const std::string_view link = random.pick(kLinks);
    if (link[0] != ':') pattern.parts.back() += ' ';
    pattern.parts.back() += link;
  }
  return pattern;
}

}  // namespace moba::lm
