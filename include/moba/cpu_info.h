// Which SIMD instructions the CPU backend uses on this machine.
#pragma once

#include <string>
#include <vector>

namespace moba {

/// The SIMD level in use, chosen at run time: "AVX-512", "AVX2", "SSE4", "SSE2", "NEON" or "scalar".
const char* simd_level();

/// The levels that this build holds, best first. `simd_level()` is the first of them that the processor has.
std::vector<std::string> compiled_simd_levels();

}  // namespace moba
