// The running best blocks of 64 lanes: sorted insertion, 16 lanes at a time.
#include <immintrin.h>

#include "cpu/avx512_bf16/verbs.h"

namespace moba::cpu::avx512_bf16 {
namespace {

constexpr std::int64_t kTileLanes = 64;

}  // namespace

void keep_best(const float* scores, std::int64_t blocks, std::int32_t first, const std::int32_t* past,
               std::int64_t lanes, std::int64_t budget, float* kept_scores, std::int32_t* kept_blocks) {
  for (std::int64_t lane = 0; lane < lanes; lane += 16) {
    const __m512i limit = _mm512_loadu_si512(past + lane);
    float* best = kept_scores + lane;
    std::int32_t* best_blocks = kept_blocks + lane;
    __m512 worst = _mm512_loadu_ps(best + (budget - 1) * kTileLanes);
    for (std::int64_t b = 0; b < blocks; ++b) {
      __m512 score = _mm512_loadu_ps(scores + b * kTileLanes + lane);
      // Greater than the worst that is held; free places hold -inf.
      __mmask16 better = _mm512_cmp_ps_mask(score, worst, _CMP_GT_OQ);
      if (better == 0) continue;
      __m512i block = _mm512_set1_epi32(first + static_cast<std::int32_t>(b));
      better &= _mm512_cmplt_epi32_mask(block, limit);
      if (better == 0) continue;
      // Each lane's newcomer goes before the first that is worse than it and pushes the rest one place down.
      __mmask16 moves = 0;
      for (std::int64_t slot = 0; slot < budget; ++slot) {
        const __m512 held = _mm512_loadu_ps(best + slot * kTileLanes);
        const __m512i held_block = _mm512_loadu_si512(best_blocks + slot * kTileLanes);
        moves |= _mm512_mask_cmp_ps_mask(better, score, held, _CMP_GT_OQ);
        _mm512_mask_storeu_ps(best + slot * kTileLanes, moves, score);
        _mm512_mask_storeu_epi32(best_blocks + slot * kTileLanes, moves, block);
        score = _mm512_mask_mov_ps(score, moves, held);
        block = _mm512_mask_mov_epi32(block, moves, held_block);
      }
      worst = _mm512_loadu_ps(best + (budget - 1) * kTileLanes);
    }
  }
}

}  // namespace moba::cpu::avx512_bf16
