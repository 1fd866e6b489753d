// What limit_simd_level() of moba/cpu_info.h leaves in use.
#pragma once

namespace moba::cpu {

/// What is above Highway's levels: products of bfloat16 pairs (see pairs.h), and those on matrix tiles.
enum class PairLimit { kNone, kPairs, kTiles };

PairLimit pair_limit();

}  // namespace moba::cpu
