// Probabilities and the gradients of scores of a tile of transposed scores.
#include "cpu/avx512_bf16/exp2.h"
#include "cpu/avx512_bf16/verbs.h"

namespace moba::cpu::avx512_bf16 {
namespace {

template <bool kHides>
inline __attribute__((always_inline)) void differentiate_lanes(const PairTile& tile, const float* dp,
                                                               const PairTerms& terms, Pair* slopes, Pair* p_rows,
                                                               Pair* slope_rows, std::int64_t lane) {
  const __m512 scale = _mm512_set1_ps(tile.scale);
  const __m512 lse = _mm512_loadu_ps(terms.lse + lane);
  const __m512 delta = _mm512_loadu_ps(terms.delta + lane), dlse = _mm512_loadu_ps(terms.dlse + lane);
  const __mmask16 live = _mm512_cmp_ps_mask(lse, _mm512_set1_ps(-__builtin_inff()), _CMP_NEQ_UQ);
  const __m512i begin = kHides ? _mm512_loadu_si512(tile.begin + lane) : _mm512_setzero_si512();
  const __m512i end = kHides ? _mm512_loadu_si512(tile.end + lane) : _mm512_setzero_si512();
  const __m512i index = interleave_index();

  // Outside a row's keys both are 0, whatever K, V and the row itself hold: set, not computed.
  const auto differentiate = [&](std::int64_t key, __m512& p, __m512& slope) {
    const __m512i at = _mm512_set1_epi32(static_cast<int>(key));
    const __mmask16 seen = kHides ? _mm512_cmple_epi32_mask(begin, at) & _mm512_cmplt_epi32_mask(at, end) & live : live;
    // Rounded like the greatest score that lse was made of: see softmax.cpp.
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(tile.scores + key * kPairRows + lane), scale);
    p = exp2_of(_mm512_sub_ps(scaled, lse));
    slope = _mm512_add_ps(_mm512_sub_ps(_mm512_loadu_ps(dp + key * kPairRows + lane), delta), dlse);
    slope = _mm512_maskz_mul_ps(seen, p, slope);
    p = _mm512_maskz_mov_ps(seen, p);
  };
  const auto write_row = [&](Pair* rows, std::int64_t key, __m512 value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + key * kPairRows / 2 + lane / 2),
                        (__m256i)_mm512_cvtneps_pbh(value));
  };
  for (std::int64_t key = 0; key < tile.keys; key += 2) {
    __m512 p0, slope0, p1 = _mm512_setzero_ps(), slope1 = p1;
    differentiate(key, p0, slope0);
    const bool both = key + 1 < tile.keys;
    if (both) differentiate(key + 1, p1, slope1);
    if (slopes != nullptr) {
      _mm512_storeu_si512(slopes + key / 2 * kPairRows + lane, interleave_rounded(slope0, slope1, index));
    }
    if (p_rows != nullptr) {
      write_row(p_rows, key, p0);
      write_row(slope_rows, key, slope0);
      if (both) {
        write_row(p_rows, key + 1, p1);
        write_row(slope_rows, key + 1, slope1);
      }
    }
  }
}

}  // namespace

void softmax_backward(const PairTile& tile, const float* dp, const PairTerms& terms, Pair* slopes, Pair* p_rows,
                      Pair* slope_rows) {
  for (std::int64_t lane = 0; lane < tile.lanes; lane += 16) {
    if (tile.begin != nullptr) {
      differentiate_lanes<true>(tile, dp, terms, slopes, p_rows, slope_rows, lane);
    } else {
      differentiate_lanes<false>(tile, dp, terms, slopes, p_rows, slope_rows, lane);
    }
  }
}

}  // namespace moba::cpu::avx512_bf16
