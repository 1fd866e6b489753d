// merge: parts of attention over disjoint keys into one, weighted by exp(lse_i - lse), in the order given.
#include <algorithm>
#include <cmath>

#include "cpu/problem.h"
#include "cpu/verbs.h"

namespace moba::cpu {

void merge(Context& context, const MergeArgs& args) {
  const TensorView& out = args.result.out;
  const std::int64_t rows = out.shape[0], heads = out.shape[1], value_dim = out.shape[2], width = padded(value_dim);
  const Kernels& kernel = kernels();
  const auto lse_of = [](const TensorView& lse, std::int64_t head, std::int64_t row) -> float& {
    return lse.as<float>()[head * lse.stride[0] + row * lse.stride[1]];
  };

  context.parallel_for(rows * heads, 64, [&](std::int64_t begin, std::int64_t end) {
    const Scratch<float> sum(context, width, "a merged row"), part_row(context, width, "a row of a part");
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t row = task / heads, head = task % heads;
      float highest = kNegativeInfinity;
      for (const Partial& part : args.parts) highest = std::max(highest, lse_of(part.lse, head, row));
      const float shift = highest == kNegativeInfinity ? 0.0f : highest;
      float total = 0.0f;
      std::fill_n(sum.data(), width, 0.0f);
      for (const Partial& part : args.parts) {
        const float lse = lse_of(part.lse, head, row);
        if (lse == kNegativeInfinity) continue;  // an empty part has no say, whatever its values
        const float weight = std::exp(lse - shift);
        kernel.load_rows(rows_of(part.out, row, head, 1), 1.0f, part_row.data(), width);
        kernel.blend(sum.data(), 1.0f, part_row.data(), weight, width);
        total += weight;
      }
      const bool empty = total == 0.0f;
      kernel.store_row(sum.data(), empty ? 0.0f : 1.0f / total, value_dim, out.dtype, row_pointer(out, row, head));
      lse_of(args.result.lse, head, row) = empty ? kNegativeInfinity : shift + std::log(total);
    }
  });
}

}  // namespace moba::cpu
