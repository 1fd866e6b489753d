// The running softmax of a tile of transposed scores.
#include "cpu/avx512_bf16/exp2.h"
#include "cpu/avx512_bf16/verbs.h"

namespace moba::cpu::avx512_bf16 {
namespace {

/// One vector of 16 lanes. kHides: some lane does not see some key.
template <bool kHides>
inline __attribute__((always_inline)) bool fold_lanes(const PairTile& tile, const PairState& state, Pair* weights,
                                                      std::int64_t lane) {
  const float* scores = tile.scores + lane;
  const __m512 nothing = _mm512_set1_ps(-__builtin_inff());
  const __m512 scale = _mm512_set1_ps(tile.scale);
  const __m512i begin = kHides ? _mm512_loadu_si512(tile.begin + lane) : _mm512_setzero_si512();
  const __m512i end = kHides ? _mm512_loadu_si512(tile.end + lane) : _mm512_setzero_si512();
  const auto seen = [&](std::int64_t key) {
    const __m512i at = _mm512_set1_epi32(static_cast<int>(key));
    return static_cast<__mmask16>(_mm512_cmple_epi32_mask(begin, at) & _mm512_cmplt_epi32_mask(at, end));
  };

  __m512 best = nothing, best_odd = nothing;
  for (std::int64_t key = 0; key < tile.keys; ++key) {
    const __m512 score = _mm512_loadu_ps(scores + key * kPairRows);
    __m512& kept = key % 2 == 0 ? best : best_odd;
    kept = kHides ? _mm512_mask_max_ps(kept, seen(key), kept, score) : _mm512_max_ps(kept, score);
  }
  best = _mm512_mul_ps(_mm512_max_ps(best, best_odd), scale);

  const __m512 old = _mm512_loadu_ps(state.shift + lane);
  // The shift always follows the greatest score: the weight that a row may rest on is then 1, which bfloat16 holds. A
  // shift that lags rounds that weight as any other, and out is up to 1.5 times less exact.
  const __mmask16 moves = _mm512_cmp_ps_mask(best, old, _CMP_GT_OQ);
  const __m512 shift = _mm512_mask_mov_ps(old, moves, best);
  const __m512 factor = _mm512_mask_blend_ps(moves, _mm512_set1_ps(1.0f), exp2_of(_mm512_sub_ps(old, shift)));
  _mm512_storeu_ps(state.shift + lane, shift);
  _mm512_storeu_ps(state.factor + lane, factor);

  // Where nothing is visible yet the shift is -inf; subtracting 0 instead keeps -inf - (-inf) away.
  const __m512 less = _mm512_mask_mov_ps(shift, _mm512_cmp_ps_mask(shift, nothing, _CMP_EQ_OQ), _mm512_setzero_ps());
  // The product is rounded before the difference (no fused one, see CMakeLists.txt), as the shift was: the greatest
  // score has weight 1 exactly, also where a unit in the last place of a score is more than float32's range of
  // exponents.
  const auto weight = [&](std::int64_t key) {
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(scores + key * kPairRows), scale);
    const __m512 p = exp2_of(_mm512_sub_ps(scaled, less));
    return kHides ? _mm512_maskz_mov_ps(seen(key), p) : p;
  };
  const __m512i index = interleave_index();
  __m512 sum = _mm512_setzero_ps(), sum_odd = _mm512_setzero_ps();
  std::int64_t key = 0;
  for (; key + 1 < tile.keys; key += 2) {
    const __m512 first = weight(key), second = weight(key + 1);
    sum = _mm512_add_ps(sum, first);
    sum_odd = _mm512_add_ps(sum_odd, second);
    _mm512_storeu_si512(weights + key / 2 * kPairRows + lane, interleave_rounded(first, second, index));
  }
  if (key < tile.keys) {
    const __m512 last = weight(key);
    sum = _mm512_add_ps(sum, last);
    _mm512_storeu_si512(weights + key / 2 * kPairRows + lane, interleave_rounded(last, _mm512_setzero_ps(), index));
  }
  sum = _mm512_add_ps(sum, sum_odd);
  _mm512_storeu_ps(state.sum + lane, _mm512_fmadd_ps(_mm512_loadu_ps(state.sum + lane), factor, sum));
  return moves != 0;
}

}  // namespace

bool softmax(const PairTile& tile, const PairState& state, Pair* weights) {
  bool rescales = false;
  for (std::int64_t lane = 0; lane < tile.lanes; lane += 16) {
    rescales |= tile.begin != nullptr ? fold_lanes<true>(tile, state, weights, lane)
                                      : fold_lanes<false>(tile, state, weights, lane);
  }
  return rescales;
}

}  // namespace moba::cpu::avx512_bf16
