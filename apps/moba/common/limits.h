// Limits of numbers on the command line.
#pragma once

#include <cstdint>

#include <CLI/CLI.hpp>

namespace moba::app {

/// Refuses numbers outside [low, high] with a message; adds nothing to the help text, unlike CLI::Range by itself.
inline CLI::Validator between(std::int64_t low, std::int64_t high) {
  return CLI::Range(low, high).description("");
}

/// Refuses numbers below `low`, and absurdly large ones, whose arithmetic would not fit 64 bits.
inline CLI::Validator at_least(std::int64_t low) {
  return between(low, std::int64_t{1} << 40);
}

}  // namespace moba::app
