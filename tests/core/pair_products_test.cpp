// The products of cpu/pairs.h themselves, on every level that has them: all shapes, against plain sums.
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>

#include "core/support.h"
#include "cpu/kernels.h"
#include "cpu/pairs.h"
#include "dtype.h"
#include "moba/cpu_info.h"

namespace moba::test {
namespace {

using cpu::kPairRows;
using cpu::Pair;
using cpu::PairKernels;
using cpu::PairProduct;

float earlier(Pair pair) {
  return std::bit_cast<float>(pair << 16);
}
float later(Pair pair) {
  return std::bit_cast<float>(pair & 0xffff0000u);
}

/// Memory as products want it: aligned to lines of the cache.
template <class T>
class Lines {
 public:
  explicit Lines(std::int64_t count) : memory_(context_, count) {}
  T* data() { return memory_.data; }
  T& operator[](std::int64_t i) { return memory_.data[i]; }

 private:
  struct Memory {
    Memory(SerialContext& lent, std::int64_t count)
        : context(lent), data(static_cast<T*>(lent.allocate(static_cast<std::size_t>(count) * sizeof(T)))) {
      std::fill_n(data, count, T{});
    }
    ~Memory() { context.release(data); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    SerialContext& context;
    T* data;
  };
  SerialContext context_;
  Memory memory_;
};

class PairProductsTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (std::getenv("MOBA_SIMD_LEVEL") != nullptr) GTEST_SKIP() << "the level is fixed by MOBA_SIMD_LEVEL";
    if (!limit_simd_level(GetParam()) || std::strcmp(simd_level(), GetParam()) != 0) {
      GTEST_SKIP() << "this build or processor has no " << GetParam();
    }
  }
  void TearDown() override {
    if (std::getenv("MOBA_SIMD_LEVEL") == nullptr) limit_simd_level(nullptr);
  }

  Pair random_pair() {
    const auto number = [&] { return static_cast<Pair>(round_to_bfloat16(normal_(random_)).bits); };
    const Pair first = number();
    return first | number() << 16;
  }

  std::mt19937 random_{7};
  std::normal_distribution<float> normal_;
};

TEST_P(PairProductsTest, AreRightForEveryShape) {
  const PairKernels& kernels = *cpu::pair_kernels();
  const cpu::ReadyForProducts ready(kernels);
  for (const bool weights : {false, true}) {  // A as weights [pairs][64]
    for (const std::int64_t m : {1, 15, 16, 17, 32, 47, 64, 100}) {
      for (const std::int64_t n : {1, 16, 40, 64, 130}) {
        for (const std::int64_t pairs : {1, 7, 16, 20, 32, 45}) {
          if (weights && (m > kPairRows || pairs > cpu::kPairKeys / 2)) continue;
          SCOPED_TRACE(std::to_string(m) + " rows, " + std::to_string(n) + " columns, " + std::to_string(pairs) +
                       " pairs" + (weights ? ", weights" : ""));
          const std::int64_t a_row = weights ? 1 : 48, a_pair = weights ? kPairRows : 1;
          const std::int64_t stride = pairs * cpu::kPanel, c_row = cpu::padded(n) + 16;
          Lines<Pair> a(128 * 64), b(cpu::panels(n) * stride);
          Lines<float> c(m * c_row), scale(m);
          for (std::int64_t i = 0; i < 128 * 64; ++i) a[i] = random_pair();
          for (std::int64_t j = 0; j < n; ++j) {
            for (std::int64_t p = 0; p < pairs; ++p) b[j / 64 * stride + p * 64 + j % 64] = random_pair();
          }
          for (const int way : {0, 1, 2}) {  // C = A B, C += A B, C = C * scale + A B
            for (std::int64_t i = 0; i < m; ++i) {
              scale[i] = i % 3 == 0 ? 1.0f : 0.25f;
              for (std::int64_t j = 0; j < c_row; ++j) c[i * c_row + j] = static_cast<float>(i - j);
            }
            kernels.multiply({.m = m,
                              .n = n,
                              .pairs = pairs,
                              .a = a.data(),
                              .a_row = a_row,
                              .a_pair = a_pair,
                              .b = b.data(),
                              .b_panel_stride = stride,
                              .c = c.data(),
                              .c_row = c_row,
                              .c_scale = way == 2 ? scale.data() : nullptr,
                              .accumulate = way > 0});
            for (std::int64_t i = 0; i < m; ++i) {
              for (std::int64_t j = 0; j < n; ++j) {
                double sum = way == 0 ? 0.0 : static_cast<double>(i - j) * (way == 2 ? scale[i] : 1.0f);
                double size = std::fabs(sum);
                for (std::int64_t p = 0; p < pairs; ++p) {
                  const Pair x = a[i * a_row + p * a_pair], y = b[j / 64 * stride + p * 64 + j % 64];
                  const double first = static_cast<double>(earlier(x)) * earlier(y);
                  const double second = static_cast<double>(later(x)) * later(y);
                  sum += first + second;
                  size += std::fabs(first) + std::fabs(second);
                }
                ASSERT_NEAR(c[i * c_row + j], sum, 1e-6 * size) << "row " << i << ", column " << j;
              }
              // Behind the padded columns nothing is written.
              for (std::int64_t j = cpu::padded(n); j < c_row; ++j) {
                ASSERT_EQ(c[i * c_row + j], static_cast<float>(i - j)) << "row " << i << ", column " << j;
              }
            }
          }
        }
      }
    }
  }
}

// An element's bits depend on its own row and column alone, and dot_lanes takes the same chain.
TEST_P(PairProductsTest, BitsDependOnRowAndColumnAlone) {
  const PairKernels& kernels = *cpu::pair_kernels();
  const cpu::ReadyForProducts ready(kernels);
  for (const std::int64_t pairs : {5, 16, 29, 64}) {
    Lines<Pair> rows(64 * 64), lanes(pairs * 64), other(pairs * 64);
    Lines<float> whole(64 * 64), one(16), dots(64);
    for (std::int64_t i = 0; i < 64; ++i) {
      for (std::int64_t p = 0; p < pairs; ++p) {
        lanes[p * 64 + i] = random_pair();
        rows[i * 64 + p] = other[p * 64 + i] = random_pair();
      }
    }
    PairProduct product{.m = 64, .n = 64, .pairs = pairs, .a = rows.data(), .a_row = 64, .b = lanes.data()};
    product.c = whole.data();
    product.c_row = 64;
    kernels.multiply(product);
    kernels.dot_lanes(other.data(), lanes.data(), pairs, dots.data());
    for (std::int64_t i = 0; i < 64; ++i) {
      EXPECT_EQ(whole[i * 64 + i], dots[i]) << "lane " << i;
      product.m = 1;
      product.n = 3;
      product.a = rows.data() + i * 64;
      product.c = one.data();
      product.c_row = 16;
      kernels.multiply(product);
      for (std::int64_t j = 0; j < 3; ++j) EXPECT_EQ(whole[i * 64 + j], one[j]) << "row " << i << ", column " << j;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, PairProductsTest, ::testing::Values("AMX-BF16", "AVX-512-BF16"),
                         [](const auto& param) { return param.index == 0 ? "tiles" : "vectors"; });

}  // namespace
}  // namespace moba::test
