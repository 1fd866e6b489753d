// Compiles the inner loops for every SIMD level and chooses one at run time.
#include "cpu/kernels.h"

#include <cstddef>
#include <type_traits>

#include "dtype.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels.cpp"
#include "cpu/highway_targets.h"
#include "hwy/foreach_target.h"
// Highway wants foreach_target before the headers that it includes again for each level.
#include "cpu/convert-inl.h"
#include "cpu/product-inl.h"
#include "cpu/softmax-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moba::cpu::HWY_NAMESPACE {

const Kernels* kernel_table() {
  static constexpr Kernels kTable = {
      .load_rows = load_rows,
      .store_row = store_row,
      .pack_rows = pack_rows,
      .pack_transposed = pack_transposed,
      .multiply = multiply,
      .softmax = softmax,
      .softmax_backward = softmax_backward,
      .dot_rows = dot_rows,
      .add_rows = add_rows,
      .dot_columns = dot_columns,
      .blend = blend,
      .keep_best = keep_best,
  };
  return &kTable;
}

}  // namespace moba::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moba::cpu {

HWY_EXPORT(kernel_table);

const Kernels& kernels() {
  return *HWY_DYNAMIC_DISPATCH(kernel_table)();
}

}  // namespace moba::cpu
#endif  // HWY_ONCE
