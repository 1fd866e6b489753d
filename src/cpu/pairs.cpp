// Which of the tables of pairs.h this processor has.
#include "cpu/pairs.h"

#include "cpu/simd_level.h"

#if defined(MOBA_AVX512_BF16) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#include "moba/cpu_info.h"
#endif

namespace moba::cpu {

#ifdef MOBA_AVX512_BF16
namespace avx512_bf16 {
extern const PairKernels kTable;
}
namespace amx_bf16 {
extern const PairKernels kTable;
}

namespace {

bool has_pairs() {
  // libgcc and compiler-rt ask CPUID, and the operating system for the wide registers.
  static const bool kHas = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return kHas;
}

/// Linux lends the tile registers to a process that asks; all its threads have them then.
bool has_tiles() {
#ifdef __linux__
  constexpr int kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h, XFEATURE_XTILEDATA
  static const bool kHas = has_matrix_tiles() && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
  return kHas;
#else
  return false;
#endif
}

}  // namespace

const PairKernels* pair_kernels() {
  if (pair_limit() == PairLimit::kNone || !has_pairs()) return nullptr;
  return pairs_have_tiles() ? &amx_bf16::kTable : &avx512_bf16::kTable;
}

const PairKernels* pair_product_kernels() {
  return pairs_have_tiles() || !__builtin_cpu_is("intel") ? pair_kernels() : nullptr;
}

bool pairs_have_tiles() {
  return pair_limit() == PairLimit::kTiles && has_pairs() && has_tiles();
}
#else
const PairKernels* pair_kernels() {
  return nullptr;
}

const PairKernels* pair_product_kernels() {
  return nullptr;
}

bool pairs_have_tiles() {
  return false;
}
#endif

}  // namespace moba::cpu
