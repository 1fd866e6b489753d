// What the libFuzzer programs share: a reader or a function either works or throws moba::Error. Anything else that
// leaves the target (another exception, a finding of a sanitizer, a failed check) ends the program and is a finding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "moba/error.h"

namespace moba::fuzz {

template <class Work>
void allow_error(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    if (std::string_view(error.what()).empty()) std::abort();  // an error says what is wrong
  }
}

inline void check(bool holds) {
  if (!holds) std::abort();
}

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace moba::fuzz
