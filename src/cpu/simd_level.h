// What limit_simd_level() of moba/cpu_info.h leaves in use.
#pragma once

namespace moba::cpu {

/// Whether the limit lets bfloat16 products of pairs be used (the level above Highway's: see pairs.h).
bool pairs_are_allowed();

}  // namespace moba::cpu
