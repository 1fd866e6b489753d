#include "lm/util/utf8.h"

#include <algorithm>
#include <cstdint>

namespace moba::lm {
namespace {

/// What the first byte of a character allows: its length, and the range of the second byte (which is where overlong
/// forms, surrogates and values above U+10FFFF are excluded). Length 0: no character begins so.
struct Lead {
  std::size_t length;
  std::uint8_t second_min;
  std::uint8_t second_max;
};

Lead lead_of(std::uint8_t byte) {
  if (byte < 0x80) return {1, 0x80, 0xBF};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

/// How many bytes at `offset` agree with the character that begins there (its whole length if it is valid); 0 if none
/// begins. `length` gets what the whole character needs.
std::size_t matching_bytes(std::string_view text, std::size_t offset, std::size_t& length) {
  const Lead lead = lead_of(static_cast<std::uint8_t>(text[offset]));
  length = lead.length;
  if (lead.length == 0) return 0;
  std::size_t matched = 1;
  while (matched < lead.length && offset + matched < text.size()) {
    const auto byte = static_cast<std::uint8_t>(text[offset + matched]);
    const bool fits = matched == 1 ? byte >= lead.second_min && byte <= lead.second_max : byte >= 0x80 && byte <= 0xBF;
    if (!fits) break;
    ++matched;
  }
  return matched;
}

}  // namespace

std::size_t find_invalid_utf8(std::string_view text) {
  std::size_t offset = 0;
  while (offset < text.size()) {
    std::size_t length = 0;
    if (matching_bytes(text, offset, length) != length || length == 0) return offset;
    offset += length;
  }
  return std::string_view::npos;
}

std::size_t incomplete_utf8_tail(std::string_view text) {
  for (std::size_t tail = 1; tail <= std::min<std::size_t>(3, text.size()); ++tail) {
    std::size_t length = 0;
    if (matching_bytes(text, text.size() - tail, length) == tail && tail < length) return tail;
  }
  return 0;
}

}  // namespace moba::lm
