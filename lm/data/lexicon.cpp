#include "lm/data/lexicon.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>

namespace moba::lm {
namespace {

constexpr std::size_t kSamples = 64;
constexpr std::size_t kSampleBytes = 128 << 10;
constexpr std::size_t kShortestWord = 3, kLongestWord = 12;

bool is_lower(std::uint8_t c) {
  return c >= 'a' && c <= 'z';
}
bool is_upper(std::uint8_t c) {
  return c >= 'A' && c <= 'Z';
}

using Counts = std::unordered_map<std::string, std::int64_t>;

// Counts lower-case words, and capitalised ones that follow a lower-case word or a comma: inside a sentence.
void count_words(std::span<const std::uint8_t> text, Counts& words, Counts& names) {
  std::size_t at = 0;
  while (at < text.size()) {
    if (!is_lower(text[at]) && !is_upper(text[at])) {
      ++at;
      continue;
    }
    const std::size_t begin = at;
    while (at < text.size() && (is_lower(text[at]) || is_upper(text[at]))) ++at;
    const std::size_t length = at - begin;
    // A word next to other bytes (UTF-8 letters, apostrophes, digits) may be a part of one.
    const bool whole = begin > 0 && (text[begin - 1] == ' ' || text[begin - 1] == '\n') && at < text.size() &&
                       (text[at] == ' ' || text[at] == '\n' || text[at] == ',' || text[at] == '.');
    if (!whole || length < kShortestWord || length > kLongestWord) continue;
    const std::string word(text.begin() + static_cast<std::ptrdiff_t>(begin),
                           text.begin() + static_cast<std::ptrdiff_t>(at));
    const bool rest_lower = std::all_of(word.begin() + 1, word.end(), [](char c) { return is_lower(c); });
    if (!rest_lower) continue;
    if (is_lower(text[begin])) {
      ++words[word];
    } else if (begin >= 2 && (is_lower(text[begin - 2]) || text[begin - 2] == ',')) {
      ++names[word];
    }
  }
}

std::vector<std::string> seen_twice(const Counts& counts) {
  std::vector<std::string> result;
  for (const auto& [word, count] : counts) {
    if (count >= 2) result.push_back(word);
  }
  std::sort(result.begin(), result.end());  // the map's order is not the same everywhere
  return result;
}

}  // namespace

Lexicon build_lexicon(std::span<const std::uint8_t> text) {
  Counts words, names;
  const std::size_t samples = std::clamp<std::size_t>(text.size() / kSampleBytes, 1, kSamples);
  const std::size_t size = std::min(text.size(), kSampleBytes);
  for (std::size_t i = 0; i < samples; ++i) {
    const std::size_t begin = samples == 1 ? 0 : (text.size() - size) / (samples - 1) * i;
    count_words(text.subspan(begin, size), words, names);
  }
  for (auto name = names.begin(); name != names.end();) {
    std::string lower = name->first;
    lower[0] = static_cast<char>(lower[0] - 'A' + 'a');
    name = words.count(lower) ? names.erase(name) : std::next(name);
  }
  return {seen_twice(words), seen_twice(names)};
}

}  // namespace moba::lm
