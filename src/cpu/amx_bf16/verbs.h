// The functions that matrix tiles do otherwise than cpu/avx512_bf16. What that folder's verbs.h says of headers holds
// here too.
#pragma once

#include "cpu/pairs.h"

namespace moba::cpu::amx_bf16 {

void begin_products();
void end_products();
void multiply(const PairProduct& product);
void dot_lanes(const Pair* a, const Pair* b, std::int64_t pairs, float* dst);

}  // namespace moba::cpu::amx_bf16
