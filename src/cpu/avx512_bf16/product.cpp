// The product of bfloat16 pairs over panels.
#include <immintrin.h>

#include "cpu/avx512_bf16/verbs.h"

namespace moba::cpu::avx512_bf16 {
namespace {

constexpr std::int64_t kPanelLanes = 64;
constexpr int kLanes = 16;

// kRows x kVectors accumulators, kVectors vectors of B and a pair of A fit in 32 registers; at least 8 accumulators
// cover the latency of the instruction (6 cycles, one a cycle).
template <int kVectors>
inline constexpr int kBlockRows = kVectors >= 3 ? 4 : 8;

template <int kRows, int kVectors>
inline __attribute__((always_inline)) void multiply_block(const PairProduct& p, const Pair* a, const Pair* b,
                                                          float* const* c, const float* scale) {
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      sum[i][j] = p.accumulate ? _mm512_loadu_ps(c[i] + j * kLanes) : _mm512_setzero_ps();
      if (scale != nullptr) sum[i][j] = _mm512_mul_ps(sum[i][j], _mm512_set1_ps(scale[i]));
    }
  }
  const std::int64_t a_row = p.a_row, a_pair = p.a_pair;
  for (std::int64_t step = p.pairs; step > 0; --step, a += a_pair, b += kPanelLanes) {
    __m512bh right[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) right[j] = (__m512bh)_mm512_loadu_si512(b + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const __m512bh left = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[i * a_row]));
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) _mm512_storeu_ps(c[i] + j * kLanes, sum[i][j]);
  }
}

template <int kRows, int kVectors>
void multiply_remainder(std::int64_t rows, const PairProduct& p, const Pair* a, const Pair* b, float* const* c,
                        const float* scale) {
  if (rows == kRows) {
    multiply_block<kRows, kVectors>(p, a, b, c, scale);
  } else if constexpr (kRows > 1) {
    multiply_remainder<kRows - 1, kVectors>(rows, p, a, b, c, scale);
  }
}

template <int kVectors>
void multiply_panel(const PairProduct& p, const Pair* b, std::int64_t first) {
  constexpr int kRows = kBlockRows<kVectors>;
  for (std::int64_t row = 0; row < p.m; row += kRows) {
    const std::int64_t rows = p.m - row < kRows ? p.m - row : kRows;
    float* c[kRows];
    for (std::int64_t i = 0; i < rows; ++i) c[i] = p.c + (row + i) * p.c_row + first;
    multiply_remainder<kRows, kVectors>(rows, p, p.a + row * p.a_row, b, c, p.c_scale ? p.c_scale + row : nullptr);
  }
}

}  // namespace

void multiply(const PairProduct& p) {
  for (std::int64_t first = 0; first < p.n; first += kPanelLanes) {
    const Pair* panel = p.b + first / kPanelLanes * p.b_panel_stride;
    const std::int64_t columns = p.n - first;
    if (columns > 3 * kLanes) {
      multiply_panel<4>(p, panel, first);
    } else if (columns > 2 * kLanes) {
      multiply_panel<3>(p, panel, first);
    } else if (columns > kLanes) {
      multiply_panel<2>(p, panel, first);
    } else {
      multiply_panel<1>(p, panel, first);
    }
  }
}

void dot_lanes(const Pair* a, const Pair* b, std::int64_t pairs, float* dst) {
  for (std::int64_t lane = 0; lane < kPanelLanes; lane += kLanes) {
    __m512 sum = _mm512_setzero_ps();
    for (std::int64_t step = 0; step < pairs; ++step) {
      const std::int64_t at = step * kPanelLanes + lane;
      sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(a + at), (__m512bh)_mm512_loadu_si512(b + at));
    }
    _mm512_storeu_ps(dst + lane, sum);
  }
}

}  // namespace moba::cpu::avx512_bf16
