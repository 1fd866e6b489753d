// The best scores of 64 lanes, 16 lanes at a time: first their values alone, then which blocks have them.
#include <immintrin.h>

#include "cpu/avx512_bf16/verbs.h"

namespace moba::cpu::avx512_bf16 {
namespace {

constexpr std::int64_t kLanes = 16;
constexpr std::int64_t kGroups = kPairRows / kLanes;

/// Insertion without branches: each newcomer displaces what is below it by one place. A NaN is what the comparisons
/// return second, so it falls through every place.
template <int kPlaces>
void rank_scores_of(const float* scores, std::int64_t blocks, std::int64_t lanes, float* best) {
  for (std::int64_t lane = 0; lane < lanes; lane += kLanes) {
    __m512 place[kPlaces];
#pragma GCC unroll 16
    for (int j = 0; j < kPlaces; ++j) place[j] = _mm512_loadu_ps(best + j * kPairRows + lane);
    for (std::int64_t b = 0; b < blocks; ++b) {
      __m512 score = _mm512_loadu_ps(scores + b * kPairRows + lane);
#pragma GCC unroll 16
      for (int j = 0; j < kPlaces; ++j) {
        const __m512 greater = _mm512_max_ps(score, place[j]);
        score = _mm512_min_ps(place[j], score);
        place[j] = greater;
      }
    }
#pragma GCC unroll 16
    for (int j = 0; j < kPlaces; ++j) _mm512_storeu_ps(best + j * kPairRows + lane, place[j]);
  }
}

using RankScores = void (*)(const float*, std::int64_t, std::int64_t, float*);

/// Bits of 64 blocks for each of 16 lanes, from the 16 bits of each block; counts them.
void transpose_bits(const std::uint16_t* of_block, std::int64_t words, std::uint64_t* of_lane, std::int32_t* counts) {
  __m512i low = _mm512_loadu_si512(of_block), high = _mm512_loadu_si512(of_block + 32);
  for (std::int64_t lane = kLanes - 1; lane >= 0; --lane) {
    const std::uint64_t bits = _cvtmask64_u64(_mm512_kunpackd(_mm512_movepi16_mask(high), _mm512_movepi16_mask(low)));
    of_lane[lane * words] = bits;
    counts[lane] += static_cast<std::int32_t>(_mm_popcnt_u64(bits));
    low = _mm512_add_epi16(low, low);
    high = _mm512_add_epi16(high, high);
  }
}

}  // namespace

void rank_scores(const float* scores, std::int64_t blocks, std::int64_t lanes, std::int64_t places, float* best) {
  static_assert(kMostKept == 16);
  static constexpr RankScores kRank[] = {
      rank_scores_of<1>,  rank_scores_of<2>,  rank_scores_of<3>,  rank_scores_of<4>,
      rank_scores_of<5>,  rank_scores_of<6>,  rank_scores_of<7>,  rank_scores_of<8>,
      rank_scores_of<9>,  rank_scores_of<10>, rank_scores_of<11>, rank_scores_of<12>,
      rank_scores_of<13>, rank_scores_of<14>, rank_scores_of<15>, rank_scores_of<16>,
  };
  kRank[places - 1](scores, blocks, lanes, best);
}

void mark_scores(const float* scores, std::int64_t blocks, const float* least, std::int64_t lanes, std::int64_t words,
                 std::uint64_t* marks, std::int32_t* counts) {
  for (std::int64_t lane = 0; lane < kPairRows; ++lane) counts[lane] = 0;
  __m512 bound[kGroups];
  for (std::int64_t g = 0; g < kGroups; ++g) bound[g] = _mm512_loadu_ps(least + g * kLanes);
  for (std::int64_t word = 0; word * 64 < blocks; ++word) {
    const float* tile = scores + word * 64 * kPairRows;
    const std::int64_t rest = blocks - word * 64, here = rest < 64 ? rest : 64;
    alignas(64) std::uint16_t of_block[kGroups][64];
    for (std::int64_t b = 0; b < here; ++b) {
#pragma GCC unroll 4
      for (std::int64_t g = 0; g < kGroups; ++g) {
        const __m512 score = _mm512_loadu_ps(tile + b * kPairRows + g * kLanes);
        of_block[g][b] = static_cast<std::uint16_t>(_cvtmask16_u32(_mm512_cmp_ps_mask(score, bound[g], _CMP_GE_OQ)));
      }
    }
    for (std::int64_t b = here; b < 64; ++b) {
      for (std::int64_t g = 0; g < kGroups; ++g) of_block[g][b] = 0;
    }
    for (std::int64_t g = 0; g * kLanes < lanes; ++g) {
      transpose_bits(of_block[g], words, marks + g * kLanes * words + word, counts + g * kLanes);
    }
  }
}

}  // namespace moba::cpu::avx512_bf16
