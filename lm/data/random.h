// Random numbers by counter: a stream is named by (seed, stream numbers), so the position in the data is a step number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

namespace moba::lm {

/// SplitMix64 (Steele, Lea, Flood 2014). The same numbers on every platform, unlike the standard's distributions.
class Random {
 public:
  /// The stream of `seed` named by `path`, for example {step, row}.
  Random(std::uint64_t seed, std::initializer_list<std::uint64_t> path) : state_(mix(seed + kGolden)) {
    for (const std::uint64_t part : path) state_ = mix(state_ ^ (part + kGolden));
  }

  std::uint64_t next() {
    state_ += kGolden;
    return mix(state_);
  }

  /// Even on [0, count), count >= 1; off by less than count / 2^64.
  std::uint64_t below(std::uint64_t count) {
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(next()) * count) >> 64);
  }

  /// Even on low … high, both included.
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(below(static_cast<std::uint64_t>(high - low + 1)));
  }

  /// Even on [0, 1), in steps of 2^-53.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

  bool chance(double probability) { return uniform() < probability; }

  template <typename Container>
  const auto& pick(const Container& choices) {
    return choices[below(std::size(choices))];
  }

  /// An index, drawn in proportion to its weight; the weights sum above 0.
  std::size_t weighted(std::span<const double> weights) {
    double total = 0;
    for (const double weight : weights) total += weight;
    double left = uniform() * total;
    for (std::size_t i = 0; i + 1 < weights.size(); ++i) {
      if (left < weights[i]) return i;
      left -= weights[i];
    }
    return weights.size() - 1;
  }

 private:
  static constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio

  static std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

  std::uint64_t state_;
};

}  // namespace moba::lm
