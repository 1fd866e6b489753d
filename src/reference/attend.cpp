// attend: softmax over the keys each row sees, with running maximum and sum (systems: online softmax).
#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/rows.h"
#include "reference/verbs.h"
#include "token_rows.h"

namespace moba::reference {
namespace {

constexpr std::int64_t kTile = 64;  // keys between two rescalings

/// max, sum of exp(score - max), and the values weighted by exp(score - max).
struct OnlineSoftmax {
  double maximum = -std::numeric_limits<double>::infinity();
  double sum = 0.0;
  double values[kMaxHeadDim] = {};

  /// What to subtract from a score: 0 while all scores were -inf, since -inf - -inf is not a number.
  double shift() const { return std::isinf(maximum) && maximum < 0 ? 0.0 : maximum; }
};

}  // namespace

void attend(Context& context, const AttendArgs& args) {
  const std::int64_t rows = args.q.shape[0], heads = args.q.shape[1], dim = args.q.shape[2];
  const std::int64_t kv_heads = args.k.shape[1], value_dim = args.v.shape[2];
  require_workspace(context, Sequences::bytes(args.batch), "offsets of the sequences");
  const Sequences sequences = sequences_of(context, args.batch, args.page_table, rows, args.k.shape[0]);

  dispatch("q", args.q.dtype, FloatTypes{}, [&]<class T>() {
    context.parallel_for(rows * heads, 16, [&](std::int64_t task_begin, std::int64_t task_end) {
      double query[kMaxHeadDim], scores[kTile];
      for (std::int64_t task = task_begin; task < task_end; ++task) {
        const std::int64_t row = task / heads, head = task % heads, kv_head = head * kv_heads / heads;
        const std::int64_t s = sequences.of_row(row);
        const std::int64_t position = s < 0 ? -1 : sequences[s].position(row);
        OnlineSoftmax state;
        load(query, row_of<T>(args.q, row, head), dim);

        const auto see_tile = [&](const TokenRows& place, std::int64_t first_key, std::int64_t count) {
          double maximum = state.maximum;
          for (std::int64_t j = 0; j < count; ++j) {
            scores[j] = args.softmax_scale * dot(query, row_of<T>(args.k, place.row(first_key + j), kv_head), dim);
            if (scores[j] > maximum) maximum = scores[j];
          }
          const double old_shift = state.shift();
          state.maximum = maximum;
          const double rescale = std::exp(old_shift - state.shift());
          if (rescale != 1.0 && state.sum != 0.0) {
            state.sum *= rescale;
            for (std::int64_t d = 0; d < value_dim; ++d) state.values[d] *= rescale;
          }
          for (std::int64_t j = 0; j < count; ++j) {
            const double weight = std::exp(scores[j] - state.shift());
            state.sum += weight;
            add_scaled(state.values, weight, row_of<T>(args.v, place.row(first_key + j), kv_head), value_dim);
          }
        };
        if (position >= 0) {
          const TokenRows place(context, args.page_table, sequences[s], pages_of(args.k, args.page_table));
          for_each_key_range(context, args.selection, row, position, head, heads,
                             [&](std::int64_t begin, std::int64_t end) {
                               for (; begin < end; begin += kTile) {
                                 see_tile(place, begin, std::min(kTile, end - begin));
                               }
                             });
        }

        const bool empty = state.sum == 0.0;  // no key, or every score -inf
        for (std::int64_t d = 0; d < value_dim; ++d) state.values[d] = empty ? 0.0 : state.values[d] / state.sum;
        store(row_of<T>(args.result.out, row, head), state.values, value_dim);
        store_lse(args.result.lse, head, row, state.maximum + (empty ? 0.0 : std::log(state.sum)));
      }
    });
  });
}

}  // namespace moba::reference
