// Names and limits of the SIMD level, in terms of Highway's targets.
#include "cpu/simd_level.h"

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cpu/highway_targets.h"
#include "cpu/pairs.h"
#include "cpu/simd_level.h"
#include "hwy/targets.h"
#include "moba/cpu_info.h"

#if HWY_ARCH_X86
#include <cpuid.h>
#endif

namespace moba {
namespace {

/// Highway calls a level by its own name ("AVX3"); users know the instruction set.
const char* level_name(std::int64_t target) {
  switch (target) {
#if HWY_ARCH_X86
    case HWY_AVX3: return "AVX-512";
#endif
    case HWY_EMU128:
    case HWY_SCALAR: return "scalar";
    default: return hwy::TargetName(target);
  }
}

/// Calls use(target) for the compiled targets; a lower bit is a better level.
template <class Use>
void for_each_compiled_target(Use&& use) {
  for (std::int64_t rest = HWY_TARGETS; rest != 0; rest &= rest - 1) use(rest & -rest);
}

// AVX-512 with products of bfloat16 pairs, on matrix tiles or not; Highway's part of the work is at its best level
// then.
constexpr const char* kTileLevel = "AMX-BF16";
constexpr const char* kPairLevel = "AVX-512-BF16";
cpu::PairLimit limit_of_pairs = cpu::PairLimit::kTiles;

}  // namespace

const char* simd_level() {
  if (cpu::pair_kernels() != nullptr) return cpu::pairs_have_tiles() ? kTileLevel : kPairLevel;
  const char* name = nullptr;
  const std::int64_t supported = HWY_SUPPORTED_TARGETS;
  for_each_compiled_target([&](std::int64_t target) {
    if (name == nullptr && (supported & target) != 0) name = level_name(target);
  });
  return name != nullptr ? name : level_name(HWY_STATIC_TARGET);
}

std::vector<std::string> compiled_simd_levels() {
  std::vector<std::string> names;
#ifdef MOBA_AVX512_BF16
  names.emplace_back(kTileLevel);
  names.emplace_back(kPairLevel);
#endif
  for_each_compiled_target([&](std::int64_t target) { names.emplace_back(level_name(target)); });
  return names;
}

bool limit_simd_level(const char* name) {
  std::int64_t limit = 0;
  cpu::PairLimit pairs = name == nullptr ? cpu::PairLimit::kTiles : cpu::PairLimit::kNone;
#ifdef MOBA_AVX512_BF16
  for (const auto& [level, above_highway] :
       {std::pair{kTileLevel, cpu::PairLimit::kTiles}, {kPairLevel, cpu::PairLimit::kPairs}}) {
    if (name == nullptr || std::strcmp(name, level) != 0) continue;
    pairs = above_highway;
    name = nullptr;
  }
#endif
  for_each_compiled_target([&](std::int64_t target) {
    if (name != nullptr && std::strcmp(level_name(target), name) == 0) limit = target;
  });
  if (name != nullptr && limit == 0) return false;
  limit_of_pairs = pairs;
#if HWY_TARGETS != HWY_STATIC_TARGET  // with one level there is nothing to choose, and Highway's library is not needed
  hwy::SetSupportedTargetsForTest(0);
  if (limit != 0) {
    // The limit and everything below it (higher bits) that the processor has; the static target is always there.
    hwy::SetSupportedTargetsForTest((hwy::SupportedTargets() & ~(limit - 1)) | HWY_STATIC_TARGET);
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
#endif
  return true;
}

bool has_matrix_tiles() {
#if HWY_ARCH_X86
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kAmxBf16 = 1u << 22;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmxBf16) != 0;
#else
  return false;
#endif
}

cpu::PairLimit cpu::pair_limit() {
  return limit_of_pairs;
}

}  // namespace moba
