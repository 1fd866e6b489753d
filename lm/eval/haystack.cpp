#include "lm/eval/haystack.h"

#include <algorithm>
#include <cctype>
#include <cmath>

#include <fmt/format.h>

#include "lm/util/utf8.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

// How far a sentence end is looked for. Sentences of prose are shorter; beyond it the text is a table or a listing.
constexpr std::size_t kSearch = 600;
// Tokens that may be cut from the end of an encoded haystack: merging tokenizers do not add up exactly.
constexpr std::int64_t kSurplus = 8;

bool is_space(char c) {
  return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}
bool is_continuation(char c) {
  return (static_cast<unsigned char>(c) & 0xC0u) == 0x80u;
}
bool is_letter(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) != 0 || (static_cast<unsigned char>(c) & 0x80u) != 0;
}

/// Is text[0, end) the end of a sentence: a mark, perhaps closing quotes or brackets, and white space next? A full stop
/// behind a short word is more often an abbreviation ("Mrs.", "Fig.") and does not count.
bool ends_sentence(std::string_view text, std::size_t end) {
  if (end == 0 || end >= text.size() || !is_space(text[end])) return false;
  std::size_t at = end;
  while (at > 0 && (text[at - 1] == '"' || text[at - 1] == '\'' || text[at - 1] == ')')) --at;
  // Closing curly quotes are E2 80 99 and E2 80 9D.
  while (at >= 3 && text.substr(at - 3, 2) == "\xE2\x80" && (text[at - 1] == '\x99' || text[at - 1] == '\x9D')) at -= 3;
  if (at == 0) return false;
  const char mark = text[at - 1];
  if (mark == '!' || mark == '?') return true;
  if (mark != '.') return false;
  std::size_t word = 0;
  while (word < at - 1 && is_letter(text[at - 2 - word])) ++word;
  return word >= 4;
}

/// Drops the beginning of a UTF-8 character whose end is missing.
void drop_partial_character(std::string& text) {
  text.resize(text.size() - incomplete_utf8_tail(text));
}

/// Text from `start` on that has `count` tokens, or a few less where that would split a character.
std::string text_of_tokens(const Tokenizer& tokenizer, const TextLoop& source, std::size_t start, std::int64_t count) {
  for (std::size_t bytes = static_cast<std::size_t>(count) + 16;; bytes += bytes / 2 + 16) {
    std::vector<std::int64_t> tokens = tokenizer.encode(source.window(start, bytes));
    if (static_cast<std::int64_t>(tokens.size()) < count) continue;
    tokens.resize(static_cast<std::size_t>(count));
    std::string text = tokenizer.decode(tokens);
    drop_partial_character(text);
    return text;
  }
}

}  // namespace

TextLoop::TextLoop(const std::vector<std::string>& texts) {
  for (const std::string& text : texts) {
    if (text.empty()) continue;
    if (!text_.empty()) text_ += "\n\n";
    text_ += text;
  }
  if (text_.find_first_not_of(" \n\r\t") == std::string::npos) {
    throw Error(ErrorCode::kInvalidArgument, "texts: there is no text in them; give at least one file with text");
  }
  if (!is_space(text_.back())) text_ += "\n\n";  // where the end meets the beginning
}

std::string TextLoop::window(std::size_t start, std::size_t bytes) const {
  start %= text_.size();
  // Three steps reach the beginning of any UTF-8 character; other bytes are taken as they are.
  for (int step = 0; step < 3 && is_continuation(text_[start]); ++step) start = (start + 1) % text_.size();
  std::string result;
  result.reserve(bytes);
  while (result.size() < bytes) {
    const std::size_t part = std::min(bytes - result.size(), text_.size() - start);
    result.append(text_, start, part);
    start = (start + part) % text_.size();
  }
  drop_partial_character(result);
  return result;
}

std::size_t TextLoop::sentence_start(std::size_t start) const {
  start %= text_.size();
  const std::string_view text = text_;
  for (std::size_t at = start; at < std::min(start + kSearch, text.size()); ++at) {
    if (!ends_sentence(text, at)) continue;
    while (at < text.size() && is_space(text[at])) ++at;
    return at % text.size();
  }
  return start;
}

std::size_t insertion_point(std::string_view text, std::size_t position) {
  position = std::min(position, text.size());
  if (position == 0) return 0;
  const std::size_t lowest = position > kSearch ? position - kSearch : 0;
  for (std::size_t at = position; at > lowest; --at) {
    if (ends_sentence(text, at)) return at;
  }
  if (lowest == 0) return 0;
  for (std::size_t at = position; at > lowest; --at) {
    if (at < text.size() && is_space(text[at])) return at;
  }
  while (position > 0 && position < text.size() && is_continuation(text[position])) --position;
  return position;
}

std::string insert_sentences(std::string_view text, std::vector<PlacedSentence> sentences, std::size_t tail) {
  const std::size_t usable = text.size() > tail ? text.size() - tail : 0;
  std::stable_sort(sentences.begin(), sentences.end(),
                   [](const PlacedSentence& a, const PlacedSentence& b) { return a.position < b.position; });
  std::string result;
  std::size_t copied = 0;
  for (const PlacedSentence& placed : sentences) {
    const auto wanted = static_cast<std::size_t>(std::llround(placed.position * static_cast<double>(usable)));
    const std::size_t point = std::max(copied, insertion_point(text, std::min(wanted, usable)));
    result.append(text.substr(copied, point - copied));
    copied = point;
    if (!result.empty() && !is_space(result.back())) result += ' ';
    result += placed.sentence;
    if (point < text.size() && !is_space(text[point])) result += ' ';
  }
  result.append(text.substr(copied));
  return result;
}

std::vector<std::int64_t> build_haystack(const Tokenizer& tokenizer, const TextLoop& source, std::size_t start,
                                         std::int64_t count, const std::vector<PlacedSentence>& sentences,
                                         std::int64_t plain_tail) {
  const std::vector<std::int64_t> prefix = tokenizer.prompt_prefix();
  const auto fixed = static_cast<std::int64_t>(prefix.size());
  std::int64_t inserted = 0;
  for (const PlacedSentence& placed : sentences) {
    inserted += static_cast<std::int64_t>(tokenizer.encode(" " + placed.sentence).size());
  }
  std::int64_t text_tokens = count - fixed - inserted;
  if (text_tokens < plain_tail + 4 * kSurplus) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("length: {} tokens of haystack hold {} sentences of {} tokens and leave no room for text; "
                            "take a greater length or fewer needles",
                            count, sentences.size(), inserted));
  }
  // A merging tokenizer's count of the whole differs a little from the sum of its parts: correct by what is missing.
  for (int attempt = 0; attempt < 16; ++attempt) {
    const std::string text = text_of_tokens(tokenizer, source, start, text_tokens);
    // The tail in bytes: in proportion to the tokens, and a few more.
    const std::size_t tail =
        text.size() * static_cast<std::size_t>(plain_tail + 2 * kSurplus) / static_cast<std::size_t>(text_tokens) + 1;
    const std::vector<std::int64_t> encoded = tokenizer.encode(insert_sentences(text, sentences, tail));
    const std::int64_t surplus = fixed + static_cast<std::int64_t>(encoded.size()) - count;
    if (surplus >= 0 && surplus <= kSurplus) {
      std::vector<std::int64_t> tokens = prefix;
      tokens.insert(tokens.end(), encoded.begin(), encoded.end() - surplus);
      return tokens;
    }
    text_tokens -= surplus < 0 ? surplus : std::max<std::int64_t>(1, surplus - kSurplus / 2);
  }
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("texts: no window at byte {} comes to exactly {} tokens; is it text?", start, count));
}

}  // namespace moba::lm
