// Small numbers and arithmetic that several files of the portable backend share.
#pragma once

#include <cstdint>
#include <limits>

namespace moba::torch_ops::portable {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

constexpr std::int64_t round_up(std::int64_t x, std::int64_t step) {
  return ceil_div(x, step) * step;
}

}  // namespace moba::torch_ops::portable
