// Element types of tensors on the host, their conversions, and the one helper that turns a DType into a C++ type.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "moba/error.h"
#include "moba/tensor.h"

namespace moba {

struct BFloat16 {
  std::uint16_t bits = 0;
};

struct Float16 {
  std::uint16_t bits = 0;
};

inline float to_float(float x) {
  return x;
}
inline float to_float(BFloat16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}
inline float to_float(Float16 x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Shifted into a float, the exponent is 112 too small; the product with 2^112 also normalises subnormal numbers.
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
}

inline double to_double(double x) {
  return x;
}
template <class T>
double to_double(T x) {
  return static_cast<double>(to_float(x));
}

/// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
inline BFloat16 round_to_bfloat16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

/// Round to nearest, ties to even; 65520 and above become infinity; a NaN stays a (quiet) NaN.
inline Float16 round_to_float16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint16_t sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t result = 0;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520, halfway between the largest number and 2^16
    result = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14, the smallest normal number
    const std::uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    result = (rounded >> 13) - (112u << 10);
  } else {
    // Adding 1/2 leaves exactly the 2^-24 grid of subnormal numbers in the significand, rounded by the hardware.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    result = std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(0.5f);
  }
  return {static_cast<std::uint16_t>(sign | result)};
}

/// double -> float with the last bit set wherever digits were lost ("round to odd"), so that a second rounding to a
/// type at least two bits shorter gives what one rounding would have given.
inline float round_to_odd(double x) {
  const float nearest = static_cast<float>(x);
  const double back = static_cast<double>(nearest);
  if (back == x || std::isnan(x)) return nearest;
  std::uint32_t bits = std::bit_cast<std::uint32_t>(nearest);
  if (std::fabs(back) > std::fabs(x)) --bits;  // one step towards zero
  return std::bit_cast<float>(bits | 1u);
}

/// x rounded once to T, to nearest even.
template <class T>
T round_to(double x);
template <>
inline double round_to<double>(double x) {
  return x;
}
template <>
inline float round_to<float>(double x) {
  return static_cast<float>(x);
}
template <>
inline BFloat16 round_to<BFloat16>(double x) {
  return round_to_bfloat16(round_to_odd(x));
}
template <>
inline Float16 round_to<Float16>(double x) {
  return round_to_float16(round_to_odd(x));
}

template <class T>
inline constexpr DType kDTypeOf = DType::kFloat32;
template <>
inline constexpr DType kDTypeOf<double> = DType::kFloat64;
template <>
inline constexpr DType kDTypeOf<BFloat16> = DType::kBFloat16;
template <>
inline constexpr DType kDTypeOf<Float16> = DType::kFloat16;
template <>
inline constexpr DType kDTypeOf<std::int32_t> = DType::kInt32;
template <>
inline constexpr DType kDTypeOf<std::int64_t> = DType::kInt64;

/// A list of C++ types a dtype may stand for.
template <class... Types>
struct OneOf {};

using FloatTypes = OneOf<double, float, BFloat16, Float16>;
using IndexTypes = OneOf<std::int32_t, std::int64_t>;

/// Calls body.template operator()<T>() with the T of the list that `dtype` names, and returns what it returns.
/// A dtype outside the list is an Error that names `argument`, its dtype and the list.
template <class First, class... Rest, class Body>
decltype(auto) dispatch(const char* argument, DType dtype, OneOf<First, Rest...> types, Body&& body) {
  using Result = decltype(body.template operator()<First>());
  const auto search = [&]<class Head, class... Tail>(const auto& self, OneOf<Head, Tail...>) -> Result {
    if (dtype == kDTypeOf<Head>) return body.template operator()<Head>();
    if constexpr (sizeof...(Tail) > 0) {
      return self(self, OneOf<Tail...>{});
    } else {
      std::string known = name_of(kDTypeOf<First>);
      ((known += std::string(", ") + name_of(kDTypeOf<Rest>)), ...);
      throw Error(ErrorCode::kUnsupported, std::string(argument) + " has dtype " + name_of(dtype) +
                                               "; supported here: " + known + ". Convert the tensor first.");
    }
  };
  return search(search, types);
}

}  // namespace moba
