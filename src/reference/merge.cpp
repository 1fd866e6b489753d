// merge: parts of attention over disjoint keys into one, weighted by exp(lse_i - lse).
#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/rows.h"
#include "reference/verbs.h"

namespace moba::reference {

void merge(Context& context, const MergeArgs& args) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const TensorView& out = args.result.out;
  const std::int64_t rows = out.shape[0], heads = out.shape[1], value_dim = out.shape[2];

  context.parallel_for(rows * heads, 16, [&](std::int64_t task_begin, std::int64_t task_end) {
    double part_values[kMaxHeadDim];
    for (std::int64_t task = task_begin; task < task_end; ++task) {
      const std::int64_t row = task / heads, head = task % heads;
      double maximum = -kInfinity, sum = 0.0;
      double values[kMaxHeadDim] = {};
      for (const Partial& part : args.parts) maximum = std::max(maximum, load_lse(part.lse, head, row));
      const double shift = maximum == -kInfinity ? 0.0 : maximum;
      for (const Partial& part : args.parts) {
        const double lse = load_lse(part.lse, head, row);
        if (lse == -kInfinity) continue;  // an empty part has no say, whatever its values
        const double weight = std::exp(lse - shift);
        dispatch("parts", part.out.dtype, FloatTypes{},
                 [&]<class T>() { load(part_values, row_of<const T>(part.out, row, head), value_dim); });
        add_scaled(values, weight, part_values, value_dim);
        sum += weight;
      }
      for (std::int64_t d = 0; d < value_dim; ++d) values[d] = sum == 0.0 ? 0.0 : values[d] / sum;
      dispatch("result.out", out.dtype, FloatTypes{},
               [&]<class T>() { store(row_of<T>(out, row, head), values, value_dim); });
      store_lse(args.result.lse, head, row, shift + (sum == 0.0 ? -kInfinity : std::log(sum)));
    }
  });
}

}  // namespace moba::reference
