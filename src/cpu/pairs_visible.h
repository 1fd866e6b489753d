// Products of pairs where the second operand holds infinity or NaN: 0 * NaN is NaN, so a row must be given exactly the
// keys that it sees, and zeros for the rest.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/pairs.h"
#include "scratch.h"

namespace moba::cpu {

inline std::int64_t visible_bytes(std::int64_t columns) {
  return 4 * kPairKeys / 2 * panels(columns) * kPanel;
}

/// multiply(product), whose pairs are at most kPairKeys keys, a row at a time; row i sees the keys [begin[i], end[i]).
inline void multiply_visible(Context& context, const PairKernels& kernel, PairProduct product,
                             const std::int32_t* begin, const std::int32_t* end) {
  const Scratch<Pair> visible(context, visible_bytes(product.n) / 4, "visible rows of an operand");
  const PairProduct whole = product;
  product.b = visible.data();
  product.b_panel_stride = product.pairs * kPanel;
  product.m = 1;
  for (std::int64_t i = 0; i < whole.m; ++i) {
    for (std::int64_t pair = 0; pair < whole.pairs; ++pair) {
      const auto seen = [&](std::int64_t t) { return begin[i] <= t && t < end[i]; };
      const Pair mask = (seen(2 * pair) ? 0x0000ffffu : 0u) | (seen(2 * pair + 1) ? 0xffff0000u : 0u);
      for (std::int64_t c = 0; c < padded(whole.n); ++c) {
        const std::int64_t panel = c / kPanel, at = pair * kPanel + c % kPanel;
        visible[panel * product.b_panel_stride + at] = whole.b[panel * whole.b_panel_stride + at] & mask;
      }
    }
    product.a = whole.a + i * whole.a_row;
    product.c = whole.c + i * whole.c_row;
    product.c_scale = whole.c_scale != nullptr ? whole.c_scale + i : nullptr;
    kernel.multiply(product);
  }
}

}  // namespace moba::cpu
