// For tests: pretend that the processor is older than it is.
#pragma once

namespace moba::cpu {

/// Uses the best level that is not above `name` (one of `compiled_simd_levels()`), for the whole process, until the
/// limit of another name or nullptr (none) is set. Levels that the processor lacks are never used. Returns false, and
/// changes nothing, where the name is unknown. Not to be called while a verb runs.
bool limit_simd_level(const char* name);

/// Whether the limit lets bfloat16 products of pairs be used (the level above Highway's: see pairs.h).
bool pairs_are_allowed();

}  // namespace moba::cpu
