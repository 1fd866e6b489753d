// Which SIMD levels this library is compiled for. Include before any Highway header.
//
// Kept: the baseline, SSE4 (Highway asks for AES with it: x86-64 since 2010), AVX2, AVX-512 (its AVX3), NEON. Left out,
// since they buy nothing here and each costs a compilation: SSSE3, the later AVX-512 sets, and SVE (whose vectors
// cannot be kept in arrays, as the product's accumulators are).
#pragma once

#include "hwy/detect_compiler_arch.h"

// Bits of Highway's own target numbering (hwy/detect_targets.h), where a name may not exist in older releases.
#if HWY_ARCH_X86
#define HWY_DISABLED_TARGETS ((1LL << 12) | 0xffLL)  // SSSE3; everything above AVX3
#elif HWY_ARCH_ARM
#define HWY_DISABLED_TARGETS (0xfLL << 24)  // SVE, SVE2, SVE_256, SVE2_128
#endif
