// Which SIMD instructions the CPU backend uses on this machine.
#pragma once

#include <string>
#include <vector>

namespace moba {

/// The SIMD level in use, chosen at run time: "AMX-BF16", "AVX-512-BF16", "AVX-512", "AVX2", "SSE4", "SSE2", "NEON" or
/// "scalar". "AVX-512-BF16" is AVX-512 with products of bfloat16 pairs in one instruction; Intel's processors issue it
/// at half the rate of others, and there attention of many rows, forward and backward, takes products of float32
/// numbers while the gate and decoding take pairs. "AMX-BF16" has the pairs' products on matrix tiles; Linux has to
/// lend them.
const char* simd_level();

/// The levels that this build holds, best first. `simd_level()` is the first of them that the processor has.
std::vector<std::string> compiled_simd_levels();

/// For tests and comparisons: uses the best level that is not above `name` (one of `compiled_simd_levels()`), for the
/// whole process, until the limit of another name or nullptr (none) is set. Levels that the processor lacks are never
/// used. Returns false, and changes nothing, where the name is unknown. Not to be called while a verb runs.
bool limit_simd_level(const char* name);

/// Whether the processor multiplies bfloat16 matrix tiles (AMX).
bool has_matrix_tiles();

}  // namespace moba
