// score: the product of each query with the representative of each block in its past.
#include <cmath>
#include <limits>

#include "block_mean.h"
#include "reference/rows.h"
#include "reference/verbs.h"
#include "sequences.h"

namespace moba::reference {

void score(Context& context, const ScoreArgs& args) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const std::int64_t rows = args.q.shape[0], heads = args.q.shape[1], dim = args.q.shape[2];
  const std::int64_t kv_heads = args.representatives.shape[1], columns = args.scores.shape[2];
  require_workspace(context, Sequences::bytes(args.batch), "offsets of the sequences");
  const Sequences sequences(context, args.batch, rows,
                            most_keys(args.representatives.shape[0], args.batch.sequences(), args.block_size));

  const auto put = [&](std::int64_t row, std::int64_t head, std::int64_t block, double value) {
    const std::int64_t at = row * args.scores.stride[0] + head * args.scores.stride[1] + block;
    if (args.scores.dtype == DType::kFloat64) {
      args.scores.as<double>()[at] = value;
    } else {
      args.scores.as<float>()[at] = static_cast<float>(value);
    }
  };

  const auto fill = [&]<class T, class R>() {
    context.parallel_for(rows * heads, 16, [&](std::int64_t task_begin, std::int64_t task_end) {
      double query[kMaxHeadDim];
      for (std::int64_t task = task_begin; task < task_end; ++task) {
        const std::int64_t row = task / heads, head = task % heads;
        const std::int64_t s = sequences.of_row(row);
        const std::int64_t position = s < 0 ? -1 : sequences[s].position(row);
        const std::int64_t past = position < 0 ? 0 : position / args.block_size;
        load(query, row_of<T>(args.q, row, head), dim);
        for (std::int64_t block = 0; block < columns; ++block) {
          double value = -kInfinity;
          if (block < past) {
            const std::int64_t block_row = sequences[s].first_block_row(args.block_size) + block;
            value = dot(query, row_of<R>(args.representatives, block_row, head * kv_heads / heads), dim);
          }
          put(row, head, block, std::isnan(value) ? -kInfinity : value);
        }
      }
    });
  };
  dispatch("q", args.q.dtype, FloatTypes{}, [&]<class T>() {
    if (args.representatives.dtype == args.q.dtype) {  // NOLINT(bugprone-branch-clone): the types differ
      fill.template operator()<T, T>();
    } else {
      fill.template operator()<T, Accumulator<T>>();
    }
  });
}

}  // namespace moba::reference
