// 2^x and the rounding to bfloat16, on vectors of 16 floats.
#pragma once

#include <immintrin.h>

namespace moba::cpu::avx512_bf16 {

/// 2^x for x <= 127: relative error below 1.5e-7, 0 below -126, NaN for NaN, 1 exactly for 0. The polynomial is that of
/// softmax-inl.h: degree 6, the least greatest relative error on [-1/2, 1/2].
inline __m512 exp2_of(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.00015345812003852072f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.00133999312191463f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.009618488957108397f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.05550328776965639f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24022646890634292f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6931472057372673f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  // Not less than -126, which a NaN is: it stays one.
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(counts, p, n);
}

/// 32 bfloat16 numbers as 16 pairs (first[i], second[i]), rounded to nearest even.
inline __m512i interleave_rounded(__m512 first, __m512 second, __m512i index) {
  return _mm512_permutexvar_epi16(index, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/// The index that interleave_rounded wants: word 2 i from the low half, word 2 i + 1 from the high one.
inline __m512i interleave_index() {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(16)), 16));
}

}  // namespace moba::cpu::avx512_bf16
