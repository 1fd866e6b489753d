// The running best blocks of 64 lanes: sorted insertion, 16 lanes at a time, the lists in registers.
#include <immintrin.h>

#include "cpu/avx512_bf16/verbs.h"

namespace moba::cpu::avx512_bf16 {
namespace {

template <int kSlots>
inline __attribute__((always_inline)) void keep_best_of_lanes(const float* scores, std::int64_t blocks,
                                                              std::int32_t first, const std::int32_t* past,
                                                              float* kept_scores, std::int32_t* kept_blocks) {
  __m512 best[kSlots];
  __m512i where[kSlots];
#pragma GCC unroll 16
  for (int j = 0; j < kSlots; ++j) {
    best[j] = _mm512_loadu_ps(kept_scores + j * kPairRows);
    where[j] = _mm512_loadu_si512(kept_blocks + j * kPairRows);
  }
  const __m512i limit = _mm512_loadu_si512(past);
  for (std::int64_t b = 0; b < blocks; ++b) {
    const __m512 score = _mm512_loadu_ps(scores + b * kPairRows);
    // Greater than the worst that is held; free places hold -inf.
    const __mmask16 better = _mm512_cmp_ps_mask(score, best[kSlots - 1], _CMP_GT_OQ);
    if (__builtin_expect(better == 0, 1)) continue;
    const __m512i block = _mm512_set1_epi32(first + static_cast<std::int32_t>(b));
    __mmask16 above = _mm512_mask_cmplt_epi32_mask(better, block, limit);
    // From the worst up: a place that the newcomer is above takes what was before it, or the newcomer where that is
    // not above the one before. Equal ones were there first and stay.
#pragma GCC unroll 16
    for (int j = kSlots - 1; j >= 0; --j) {
      const __mmask16 above_before =
          j > 0 ? _mm512_mask_cmp_ps_mask(above, score, best[j > 0 ? j - 1 : 0], _CMP_GT_OQ) : __mmask16{0};
      best[j] = _mm512_mask_mov_ps(best[j], above, score);
      where[j] = _mm512_mask_mov_epi32(where[j], above, block);
      if (j > 0) {
        best[j] = _mm512_mask_mov_ps(best[j], above_before, best[j - 1]);
        where[j] = _mm512_mask_mov_epi32(where[j], above_before, where[j - 1]);
      }
      above = above_before;
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kSlots; ++j) {
    _mm512_storeu_ps(kept_scores + j * kPairRows, best[j]);
    _mm512_storeu_si512(kept_blocks + j * kPairRows, where[j]);
  }
}

template <int kSlots>
void keep_best_in(const float* scores, std::int64_t blocks, std::int32_t first, const std::int32_t* past,
                  std::int64_t lanes, float* kept_scores, std::int32_t* kept_blocks) {
  for (std::int64_t lane = 0; lane < lanes; lane += 16) {
    keep_best_of_lanes<kSlots>(scores + lane, blocks, first, past + lane, kept_scores + lane, kept_blocks + lane);
  }
}

}  // namespace

void keep_best(const float* scores, std::int64_t blocks, std::int32_t first, const std::int32_t* past,
               std::int64_t lanes, std::int64_t slots, float* kept_scores, std::int32_t* kept_blocks) {
  switch (slots) {
    case 2: return keep_best_in<2>(scores, blocks, first, past, lanes, kept_scores, kept_blocks);
    case 4: return keep_best_in<4>(scores, blocks, first, past, lanes, kept_scores, kept_blocks);
    case 8: return keep_best_in<8>(scores, blocks, first, past, lanes, kept_scores, kept_blocks);
    default: return keep_best_in<16>(scores, blocks, first, past, lanes, kept_scores, kept_blocks);
  }
}

}  // namespace moba::cpu::avx512_bf16
