// Windows of real text with sentences put in, counted in tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lm/tokenizer/tokenizer.h"

namespace moba::lm {

/// The haystack files one after another, over and over: an endless text.
class TextLoop {
 public:
  /// Error when there is no text at all.
  explicit TextLoop(const std::vector<std::string>& texts);

  std::size_t size() const { return text_.size(); }
  /// `bytes` bytes from `start` on (modulo the size); cut so that no UTF-8 character is split.
  std::string window(std::size_t start, std::size_t bytes) const;
  /// The first beginning of a sentence at or after `start`, if one is near; else `start`.
  std::size_t sentence_start(std::size_t start) const;

 private:
  std::string text_;
};

/// Where a sentence may be put in: the nearest sentence end at or before `position` (just behind its punctuation and
/// before white space). Without one within a few hundred bytes: before the nearest white space; else the nearest
/// beginning of a UTF-8 character; 0 when `position` is 0.
std::size_t insertion_point(std::string_view text, std::size_t position);

/// A sentence and where it goes: 0 is the beginning of the text, 1 its end.
struct PlacedSentence {
  double position = 0;
  std::string sentence;
};

/// The text with every sentence put in after the nearest sentence end before its place. No sentence is put into the
/// last `tail` bytes.
std::string insert_sentences(std::string_view text, std::vector<PlacedSentence> sentences, std::size_t tail);

/// Exactly `count` tokens, the tokenizer's prompt prefix among them: text from `start` on with the sentences in it.
/// The last `plain_tail` tokens hold no sentence. Error when the sentences leave no room for text.
std::vector<std::int64_t> build_haystack(const Tokenizer& tokenizer, const TextLoop& source, std::size_t start,
                                         std::int64_t count, const std::vector<PlacedSentence>& sentences,
                                         std::int64_t plain_tail);

}  // namespace moba::lm
