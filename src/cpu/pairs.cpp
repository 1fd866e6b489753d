// Whether this processor has the functions of pairs.h.
#include "cpu/pairs.h"

#include "cpu/simd_level.h"

namespace moba::cpu {

#ifdef MOBA_AVX512_BF16
namespace avx512_bf16 {
extern const PairKernels kTable;
}

const PairKernels* compiled_pair_kernels() {
  // libgcc and compiler-rt ask CPUID, and the operating system for the wide registers.
  static const bool kHas = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return kHas ? &avx512_bf16::kTable : nullptr;
}
#else
const PairKernels* compiled_pair_kernels() {
  return nullptr;
}
#endif

const PairKernels* pair_kernels() {
  return pairs_are_allowed() ? compiled_pair_kernels() : nullptr;
}

}  // namespace moba::cpu
