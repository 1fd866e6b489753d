// UTF-8 as RFC 3629 defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string_view>

namespace moba::lm {

/// Offset of the first byte that is not part of a whole, valid character; npos when all of `text` is valid.
std::size_t find_invalid_utf8(std::string_view text);

/// How many bytes at the end begin a character that more bytes could still complete: 0 to 3. Bytes that no
/// continuation could make valid do not count.
std::size_t incomplete_utf8_tail(std::string_view text);

}  // namespace moba::lm
