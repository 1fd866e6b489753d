// Matrix products over panels, and dot products for few rows.
// Included once for each SIMD level.

#if defined(MOBA_CPU_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOBA_CPU_PRODUCT_INL_H_
#undef MOBA_CPU_PRODUCT_INL_H_
#else
#define MOBA_CPU_PRODUCT_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moba::cpu::HWY_NAMESPACE {

// The register block: kBlockRows x kBlockVectors accumulators, kBlockVectors vectors of B and one number of A must fit
// in the registers (32 with AVX-512 and NEON, 16 with SSE and AVX2), and there must be enough accumulators to cover
// the FMA's latency times its throughput (4 * 2).
#if HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_AVX2
inline constexpr int kBlockRows = 6;
inline constexpr int kBlockVectors = 2;
#elif HWY_TARGET == HWY_SCALAR
inline constexpr int kBlockRows = 2;
inline constexpr int kBlockVectors = 4;
#else
inline constexpr int kBlockRows = 4;
inline constexpr int kBlockVectors = 4;
#endif

// Steps over k before the next rows' turn: 64 columns of as many rows of B are 32 KiB, the first-level cache.
inline constexpr std::int64_t kDepth = 128;

template <int kRows, int kVectors>
HWY_INLINE void multiply_block(std::int64_t k, const float* const* a, std::int64_t a_column, const float* b,
                               float* const* c, std::int64_t column, bool from_c) {
  const FloatTag d;
  const std::size_t lanes = hn::Lanes(d);
  Floats sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      sum[i][j] = from_c ? hn::LoadU(d, c[i] + column + static_cast<std::size_t>(j) * lanes) : hn::Zero(d);
    }
  }
  for (std::int64_t step = 0; step < k; ++step) {
    Floats right[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) right[j] = hn::LoadU(d, b + step * kPanel + static_cast<std::size_t>(j) * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Floats left = hn::Set(d, a[i][step * a_column]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] = hn::MulAdd(left, right[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      hn::StoreU(sum[i][j], d, c[i] + column + static_cast<std::size_t>(j) * lanes);
    }
  }
}

// kRows rows by the columns of one panel.
template <int kRows>
HWY_NOINLINE void multiply_rows(std::int64_t k, const float* const* a, std::int64_t a_column, const float* b,
                                float* const* c, std::int64_t first, std::int64_t columns, bool from_c) {
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(FloatTag()));
  std::int64_t column = 0;
  for (; column + (kBlockVectors - 1) * lanes < columns; column += kBlockVectors * lanes) {
    multiply_block<kRows, kBlockVectors>(k, a, a_column, b + column, c, first + column, from_c);
  }
  for (; column < columns; column += lanes) {
    multiply_block<kRows, 1>(k, a, a_column, b + column, c, first + column, from_c);
  }
}

template <int kRows>
HWY_INLINE void multiply_remainder(std::int64_t rows, std::int64_t k, const float* const* a, std::int64_t a_column,
                                   const float* b, float* const* c, std::int64_t first, std::int64_t columns,
                                   bool from_c) {
  if (rows == kRows) {
    multiply_rows<kRows>(k, a, a_column, b, c, first, columns, from_c);
  } else if constexpr (kRows > 1) {
    multiply_remainder<kRows - 1>(rows, k, a, a_column, b, c, first, columns, from_c);
  }
}

void multiply(const Product& p) {
  for (std::int64_t first = 0; first < p.n; first += kPanel) {
    const float* panel = p.b + first / kPanel * p.b_panel_stride;
    const std::int64_t columns = HWY_MIN(kPanel, p.n - first);
    std::int64_t step = 0;
    do {  // once even for k = 0, which sets C to zero
      const std::int64_t depth = HWY_MIN(kDepth, p.k - step);
      for (std::int64_t row = 0; row < p.m; row += kBlockRows) {
        const std::int64_t rows = HWY_MIN(std::int64_t{kBlockRows}, p.m - row);
        const float* a[kBlockRows];
        float* c[kBlockRows];
        for (std::int64_t i = 0; i < rows; ++i) {
          a[i] = p.a + (p.a_ids ? p.a_ids[row + i] : row + i) * p.a_row + step * p.a_column;
          c[i] = p.c + (p.c_ids ? p.c_ids[row + i] : row + i) * p.c_row;
        }
        multiply_remainder<kBlockRows>(rows, depth, a, p.a_column, panel + step * kPanel, c, first, columns,
                                       p.accumulate || step > 0);
      }
      step += kDepth;
    } while (step < p.k);
  }
}

void dot_columns(const float* a, const float* b, std::int64_t k, float* dst) {
  const FloatTag d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t column = 0; column < kPanel; column += lanes) {
    Floats sum = hn::Zero(d);
    for (std::int64_t step = 0; step < k; ++step) {
      const std::int64_t at = step * kPanel + column;
      sum = hn::MulAdd(hn::LoadU(d, a + at), hn::LoadU(d, b + at), sum);
    }
    hn::StoreU(sum, d, dst + column);
  }
}

// Four rows at a time, so that four chains of additions are under way. Rows and vector are padded with zeros.
void dot_rows(const float* rows, std::int64_t row_stride, std::int64_t count, std::int64_t columns, const float* vector,
              float* dst) {
  const FloatTag d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    const float* row = rows + r * row_stride;
    Floats s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
    for (std::int64_t c = 0; c < columns; c += lanes) {
      const Floats x = hn::LoadU(d, vector + c);
      s0 = hn::MulAdd(x, hn::LoadU(d, row + c), s0);
      s1 = hn::MulAdd(x, hn::LoadU(d, row + row_stride + c), s1);
      s2 = hn::MulAdd(x, hn::LoadU(d, row + 2 * row_stride + c), s2);
      s3 = hn::MulAdd(x, hn::LoadU(d, row + 3 * row_stride + c), s3);
    }
    dst[r] = hn::GetLane(hn::SumOfLanes(d, s0));
    dst[r + 1] = hn::GetLane(hn::SumOfLanes(d, s1));
    dst[r + 2] = hn::GetLane(hn::SumOfLanes(d, s2));
    dst[r + 3] = hn::GetLane(hn::SumOfLanes(d, s3));
  }
  for (; r < count; ++r) {
    Floats sum = hn::Zero(d);
    for (std::int64_t c = 0; c < columns; c += lanes) {
      sum = hn::MulAdd(hn::LoadU(d, vector + c), hn::LoadU(d, rows + r * row_stride + c), sum);
    }
    dst[r] = hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

void blend(float* dst, float factor, const float* src, float weight, std::int64_t columns) {
  const FloatTag d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const Floats f = hn::Set(d, factor);
  const Floats w = hn::Set(d, weight);
  for (std::int64_t c = 0; c < columns; c += lanes) {  // rows are padded
    hn::StoreU(hn::MulAdd(w, hn::LoadU(d, src + c), hn::Mul(f, hn::LoadU(d, dst + c))), d, dst + c);
  }
}

}  // namespace moba::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
