// Division of positions by a number that is the same all over a launch: a product and a shift in place of some twenty
// instructions.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MOBA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MOBA_HOST_DEVICE inline
#endif

namespace moba::cuda {

/// Exact quotients of 0 <= n < 2^31 by 1 <= d < 2^31. With 2^(b - 1) < d <= 2^b and m = floor(2^(31 + b) / d) + 1, m *
/// d exceeds 2^(31 + b) by at most d <= 2^b, so n * m / 2^(31 + b) exceeds n / d by less than 1 / d; and m is below
/// 2^32.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(std::int64_t d) {
    while ((std::int64_t{1} << bits_) < d) ++bits_;
    factor_ = static_cast<std::uint32_t>((std::uint64_t{1} << (31 + bits_)) / static_cast<std::uint64_t>(d) + 1);
  }
  MOBA_HOST_DEVICE std::int32_t quotient(std::int32_t n) const {
    return static_cast<std::int32_t>(static_cast<std::uint64_t>(static_cast<std::uint32_t>(n)) * factor_ >>
                                     (31 + bits_));
  }

 private:
  std::uint32_t factor_ = 0x80000001u;  // d = 1
  int bits_ = 0;
};

}  // namespace moba::cuda
