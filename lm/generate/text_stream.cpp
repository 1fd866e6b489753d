#include "lm/generate/text_stream.h"

#include <algorithm>
#include <utility>

#include "lm/util/utf8.h"

namespace moba::lm {
namespace {

/// Length of the longest end of `text` that begins `stop` without completing it.
std::size_t partial_match(std::string_view text, std::string_view stop) {
  for (std::size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.substr(text.size() - length) == stop.substr(0, length)) return length;
  }
  return 0;
}

}  // namespace

TextStream::TextStream(std::vector<std::string> stops, Emit emit) : stops_(std::move(stops)), emit_(std::move(emit)) {}

void TextStream::release(std::size_t bytes) {
  if (bytes > 0 && emit_) emit_(std::string_view(held_).substr(0, bytes));
  held_.erase(0, bytes);
}

bool TextStream::add(std::string_view piece) {
  held_ += piece;
  std::size_t first = std::string::npos, keep = incomplete_utf8_tail(held_);
  for (const std::string& stop : stops_) {
    first = std::min(first, held_.find(stop));
    keep = std::max(keep, partial_match(held_, stop));
  }
  if (first != std::string::npos) {
    release(first);
    held_.clear();
    return true;
  }
  release(held_.size() - keep);
  return false;
}

void TextStream::finish() {
  release(held_.size());
}

}  // namespace moba::lm
