// The functions of the table in cpu/pairs.h, one file each. Every file here is compiled for AVX-512 with BF16, so none
// includes more than <immintrin.h> and plain headers: an inline function of the standard library that was compiled here
// could be the one that the linker keeps for every processor.
#pragma once

#include "cpu/pairs.h"

namespace moba::cpu::avx512_bf16 {

void copy_rows(const PairSource& src, Pair* dst, std::int64_t row_pairs);
bool pack_row_pairs(const PairSource& src, Pair* dst);
void pack_lanes(const PairSource& src, Pair* dst);
void multiply(const PairProduct& product);
bool softmax(const PairTile& tile, const PairState& state, Pair* weights);
void softmax_backward(const PairTile& tile, const float* dp, const PairTerms& terms, Pair* slopes, Pair* p_rows,
                      Pair* slope_rows);
void dot_lanes(const Pair* a, const Pair* b, std::int64_t pairs, float* dst);
void dot_row(const PairSource& keys, const std::uint16_t* query, float scale, float* scores);
void add_row(const PairSource& values, const float* weights, float* out);
void rank_scores(const float* scores, std::int64_t blocks, std::int64_t lanes, std::int64_t places, float* best);
void mark_scores(const float* scores, std::int64_t blocks, const float* least, std::int64_t lanes, std::int64_t words,
                 std::uint64_t* marks, std::int32_t* counts);

}  // namespace moba::cpu::avx512_bf16
