// bfloat16 rows as operands of products of pairs.
#include <immintrin.h>

#include "cpu/avx512_bf16/transpose.h"
#include "cpu/avx512_bf16/verbs.h"

namespace moba::cpu::avx512_bf16 {
namespace {

constexpr std::int64_t kPanelLanes = 64;
constexpr std::int64_t kChunk = 32;  // columns of a vector

const std::uint16_t* row_of(const PairSource& src, std::int64_t row) {
  return src.data + (src.ids ? src.ids[row] : row) * src.stride;
}

/// Columns [first, first + 32) of a row, zero behind its last.
inline __m512i load_columns(const PairSource& src, std::int64_t row, std::int64_t first) {
  const std::int64_t rest = src.columns - first;
  if (row >= src.rows || rest <= 0) return _mm512_setzero_si512();
  const std::uint16_t* at = row_of(src, row) + first;
  if (rest >= kChunk) return _mm512_loadu_si512(at);
  return _mm512_maskz_loadu_epi16((__mmask32{1} << rest) - 1, at);
}

/// Rows may lie far apart, where no prefetcher finds them.
inline void ask_for_row(const PairSource& src, std::int64_t row) {
  if (row >= src.rows) return;
  const std::uint16_t* at = row_of(src, row);
  for (std::int64_t c = 0; c < src.columns; c += kChunk) _mm_prefetch(at + c, _MM_HINT_T0);
}
constexpr std::int64_t kRowsAhead = 16;

}  // namespace

void copy_rows(const PairSource& src, Pair* dst, std::int64_t row_pairs) {
  for (std::int64_t r = 0; r < src.rows; ++r) {
    ask_for_row(src, r + kRowsAhead);
    std::int64_t pair = 0;
    for (; pair + 16 <= row_pairs; pair += 16) {
      _mm512_storeu_si512(dst + r * row_pairs + pair, load_columns(src, r, 2 * pair));
    }
    if (pair < row_pairs) {
      _mm512_mask_storeu_epi32(dst + r * row_pairs + pair, static_cast<__mmask16>((1u << (row_pairs - pair)) - 1),
                               load_columns(src, r, 2 * pair));
    }
  }
}

bool pack_row_pairs(const PairSource& src, Pair* dst) {
  // Word i of the result: the even ones come from the first row, the odd ones from the second (bit 5 chooses).
  alignas(64) std::uint16_t low[32], high[32];
  for (int i = 0; i < 32; ++i) {
    low[i] = static_cast<std::uint16_t>(i / 2 + (i % 2) * 32);
    high[i] = static_cast<std::uint16_t>(low[i] + 16);
  }
  const __m512i low_index = _mm512_load_si512(low), high_index = _mm512_load_si512(high);
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  const std::int64_t pairs = pairs_of(src.rows), width = (src.columns + 15) / 16 * 16;
  __mmask32 spoiled = 0;
  for (std::int64_t p = 0; p < pairs; ++p) {
    for (std::int64_t c = 0; c < width; c += kChunk) {
      const __m512i first = load_columns(src, 2 * p, c), second = load_columns(src, 2 * p + 1, c);
      spoiled |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(first, exponent), exponent);
      spoiled |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(second, exponent), exponent);
      Pair* out = dst + (c / kPanelLanes * pairs + p) * kPanelLanes + c % kPanelLanes;
      _mm512_storeu_si512(out, _mm512_permutex2var_epi16(first, low_index, second));
      if (c + 16 < width) _mm512_storeu_si512(out + 16, _mm512_permutex2var_epi16(first, high_index, second));
    }
  }
  return spoiled == 0;
}

void pack_lanes(const PairSource& src, Pair* dst) {
  const std::int64_t pairs = pairs_of(src.columns);
  for (std::int64_t lane = 0; lane < src.rows; lane += 16) {
    for (std::int64_t pair = 0; pair < pairs; pair += 16) {
      __m512i r[16];
      for (int i = 0; i < 16; ++i) r[i] = load_columns(src, lane + i, 2 * pair);
      transpose(r);
      const int here = static_cast<int>(pairs - pair < 16 ? pairs - pair : 16);
      for (int i = 0; i < here; ++i) _mm512_storeu_si512(dst + (pair + i) * kPanelLanes + lane, r[i]);
    }
  }
}

}  // namespace moba::cpu::avx512_bf16
