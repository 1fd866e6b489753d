// One query row against keys and values as they lie in memory: reading them is all the work there is.
#include <immintrin.h>

#include "cpu/avx512_bf16/verbs.h"

namespace moba::cpu::avx512_bf16 {
namespace {

constexpr std::int64_t kColumns = 32;     // bfloat16 numbers of a vector
constexpr std::int64_t kMostVectors = 8;  // of a row: the largest head dim is 256
constexpr int kLanes = 16;

/// 32 columns, or the first `rest` of them and zeros.
inline __m512bh load_pairs(const std::uint16_t* at, std::int64_t rest) {
  if (rest >= kColumns) return (__m512bh)_mm512_loadu_si512(at);
  return (__m512bh)_mm512_maskz_loadu_epi16((__mmask32{1} << rest) - 1, at);
}

/// out[0 .. 16 * kVectors) += weights V for those columns.
template <int kVectors>
inline void add_columns(const PairSource& values, std::int64_t column, const float* weights, float* out) {
  __m512 sum[kVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j) sum[j] = _mm512_loadu_ps(out + column + j * kLanes);
  for (std::int64_t t = 0; t < values.rows; ++t) {
    const std::uint16_t* row = values.data + t * values.stride + column;
    const __m512 weight = _mm512_set1_ps(weights[t]);
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      const std::int64_t rest = values.columns - column - j * kLanes;
      const __m256i bits = rest >= kLanes
                               ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + j * kLanes))
                               : _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << rest) - 1), row + j * kLanes);
      const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
      sum[j] = _mm512_fmadd_ps(weight, value, sum[j]);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j) _mm512_storeu_ps(out + column + j * kLanes, sum[j]);
}

}  // namespace

void dot_row(const PairSource& keys, const std::uint16_t* query, float scale, float* scores) {
  __m512bh q[kMostVectors];
  const std::int64_t vectors = (keys.columns + kColumns - 1) / kColumns;
  for (std::int64_t j = 0; j < vectors; ++j) q[j] = load_pairs(query + j * kColumns, keys.columns - j * kColumns);
  for (std::int64_t t = 0; t < keys.rows; ++t) {
    const std::uint16_t* key = keys.data + t * keys.stride;
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (std::int64_t j = 0; j < vectors; j += 2) {
      even = _mm512_dpbf16_ps(even, q[j], load_pairs(key + j * kColumns, keys.columns - j * kColumns));
      if (j + 1 < vectors) {
        odd = _mm512_dpbf16_ps(odd, q[j + 1], load_pairs(key + (j + 1) * kColumns, keys.columns - (j + 1) * kColumns));
      }
    }
    scores[t] = scale * _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
  }
}

void add_row(const PairSource& values, const float* weights, float* out) {
  const std::int64_t width = (values.columns + kLanes - 1) / kLanes * kLanes;
  std::int64_t column = 0;
  for (; column + 8 * kLanes <= width; column += 8 * kLanes) add_columns<8>(values, column, weights, out);
  for (; column + 4 * kLanes <= width; column += 4 * kLanes) add_columns<4>(values, column, weights, out);
  for (; column < width; column += kLanes) add_columns<1>(values, column, weights, out);
}

}  // namespace moba::cpu::avx512_bf16
