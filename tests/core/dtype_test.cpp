// Conversions of bfloat16 and float16, against arithmetic.
#include "dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace moba::test {
namespace {

/// The value of a float16 by the definition of the format.
double float16_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double magnitude;
  if (exponent == 31) {
    magnitude = fraction == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  } else {
    magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

TEST(DTypeTest, Float16DecodesAndSurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const Float16 x{static_cast<std::uint16_t>(bits)};
    const double value = float16_value(x.bits);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_double(x)));
      EXPECT_TRUE(std::isnan(to_double(round_to<Float16>(to_double(x)))));
      continue;
    }
    ASSERT_EQ(to_double(x), value) << bits;
    ASSERT_EQ(round_to<Float16>(value).bits, x.bits);
    ASSERT_EQ(round_to_float16(static_cast<float>(value)).bits, x.bits);
  }
}

TEST(DTypeTest, BFloat16SurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const BFloat16 x{static_cast<std::uint16_t>(bits)};
    const double value = to_double(x);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_double(round_to<BFloat16>(value))));
    } else {
      ASSERT_EQ(round_to<BFloat16>(value).bits, x.bits);
    }
  }
}

/// Rounding between two neighbours a < b of a format: nearest, and at the middle to the even one.
template <class T>
void expect_nearest_even(std::uint16_t low_bits) {
  const T low{low_bits}, high{static_cast<std::uint16_t>(low_bits + 1)};
  const double a = to_double(low), b = to_double(high);
  if (!std::isfinite(a) || !std::isfinite(b)) return;
  const double middle = a + (b - a) / 2;
  const std::uint16_t even = low_bits & 1 ? high.bits : low.bits;
  EXPECT_EQ(round_to<T>(middle).bits, even) << a;
  EXPECT_EQ(round_to<T>(std::nextafter(middle, a)).bits, low.bits) << a;
  EXPECT_EQ(round_to<T>(std::nextafter(middle, b)).bits, high.bits) << a;
  EXPECT_EQ(round_to<T>(-middle).bits, even | 0x8000) << a;
}

TEST(DTypeTest, RoundsToNearestEvenFromDouble) {
  for (std::uint32_t bits = 0; bits < 0x7fffu; ++bits) {
    expect_nearest_even<Float16>(static_cast<std::uint16_t>(bits));
    expect_nearest_even<BFloat16>(static_cast<std::uint16_t>(bits));
  }
}

TEST(DTypeTest, OverflowsToInfinity) {
  EXPECT_EQ(to_double(round_to<Float16>(65519.999)), 65504.0);
  EXPECT_TRUE(std::isinf(to_double(round_to<Float16>(65520.0))));
  EXPECT_TRUE(std::isinf(to_double(round_to<Float16>(1e300))));
  EXPECT_TRUE(std::isinf(to_double(round_to<BFloat16>(3.4e38))));
  EXPECT_TRUE(std::isinf(to_double(round_to<BFloat16>(-1e300))));
}

TEST(DTypeTest, DispatchNamesWhatItDoesNotKnow) {
  const int size = dispatch("x", DType::kBFloat16, FloatTypes{}, []<class T>() { return static_cast<int>(sizeof(T)); });
  EXPECT_EQ(size, 2);
  try {
    dispatch("x", DType::kInt32, FloatTypes{}, []<class T>() {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "x has dtype int32; supported here: float64, float32, bfloat16, float16. Convert the tensor first.");
  }
}

}  // namespace
}  // namespace moba::test
