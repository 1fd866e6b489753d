// attend_backward: dS = P * (dP - delta + dlse) with P = exp(scale * q.k - lse), delta = out.dout;
// dq = scale * dS k, dk = scale * dS^T q, dv = P^T dout. One pass over rows for dq, one over tiles of keys for dk, dv.
#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/rows.h"
#include "reference/verbs.h"
#include "sequences.h"

namespace moba::reference {
namespace {

constexpr std::int64_t kTile = 64;  // keys whose gradients one task sums

/// One query row of one head, in double.
struct QueryRow {
  double query[kMaxHeadDim], dout[kMaxHeadDim];
  double lse = 0.0;
  double bias = 0.0;  // delta - dlse
  /// A row without a key, or all of whose scores are -inf, has no gradient.
  bool empty() const { return std::isinf(lse) && lse < 0; }
};

template <class T>
void load_row(QueryRow& to, const AttendBackwardArgs& args, std::int64_t row, std::int64_t head) {
  load(to.query, row_of<T>(args.q, row, head), args.q.shape[2]);
  load(to.dout, row_of<T>(args.dout, row, head), args.v.shape[2]);
  to.lse = load_lse(args.lse, head, row);
  to.bias = dot(to.dout, row_of<T>(args.out, row, head), args.v.shape[2]);
  if (args.dlse.present()) to.bias -= load_lse(args.dlse, head, row);
}

/// P and dS of one (row, key).
struct Weights {
  double p, ds;
};

template <class T>
Weights weights_of(const QueryRow& row, const AttendBackwardArgs& args, std::int64_t key, std::int64_t kv_head) {
  const double score = args.softmax_scale * dot(row.query, row_of<T>(args.k, key, kv_head), args.k.shape[2]);
  const double p = std::exp(score - row.lse);
  const double dp = dot(row.dout, row_of<T>(args.v, key, kv_head), args.v.shape[2]);
  return {p, p * (dp - row.bias)};
}

template <class T>
void query_gradients(Context& context, const AttendBackwardArgs& args, const Sequences& sequences) {
  const std::int64_t rows = args.q.shape[0], heads = args.q.shape[1], dim = args.q.shape[2];
  context.parallel_for(rows * heads, 16, [&](std::int64_t task_begin, std::int64_t task_end) {
    QueryRow query_row;
    for (std::int64_t task = task_begin; task < task_end; ++task) {
      const std::int64_t row = task / heads, head = task % heads, kv_head = head * args.k.shape[1] / heads;
      const std::int64_t s = sequences.of_row(row);
      const std::int64_t position = s < 0 ? -1 : sequences[s].position(row);
      double dq[kMaxHeadDim] = {};
      load_row<T>(query_row, args, row, head);
      if (position >= 0 && !query_row.empty()) {
        for_each_key_range(context, args.selection, row, position, head, heads,
                           [&](std::int64_t begin, std::int64_t end) {
                             for (std::int64_t key = sequences[s].k_begin + begin; begin < end; ++begin, ++key) {
                               const double ds = weights_of<T>(query_row, args, key, kv_head).ds;
                               add_scaled(dq, args.softmax_scale * ds, row_of<T>(args.k, key, kv_head), dim);
                             }
                           });
      }
      store(row_of<T>(args.dq, row, head), dq, dim);
    }
  });
}

/// dk and dv of the keys [begin, end) (positions of one sequence) of one key/value head. `sums` holds kTile rows of
/// each.
template <class T>
void tile_gradients(Context& context, const AttendBackwardArgs& args, const Sequence& sequence, std::int64_t kv_head,
                    std::int64_t begin, std::int64_t end, double* sums) {
  const std::int64_t heads = args.q.shape[1], dim = args.q.shape[2], value_dim = args.v.shape[2];
  const std::int64_t group = heads / args.k.shape[1];
  double* dk = sums;
  double* dv = sums + kTile * dim;
  std::fill_n(sums, kTile * (dim + value_dim), 0.0);
  QueryRow query_row;
  for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (std::int64_t row = sequence.q_begin; row < sequence.q_begin + sequence.q_length; ++row) {
      const std::int64_t position = sequence.position(row);
      if (position < begin) continue;
      bool loaded = false;
      for_each_key_range(context, args.selection, row, position, head, heads,
                         [&](std::int64_t range_begin, std::int64_t range_end) {
                           const std::int64_t first = std::max(range_begin, begin), last = std::min(range_end, end);
                           if (first >= last) return;
                           if (!loaded) load_row<T>(query_row, args, row, head);
                           loaded = true;
                           if (query_row.empty()) return;
                           for (std::int64_t t = first; t < last; ++t) {
                             const Weights w = weights_of<T>(query_row, args, sequence.k_begin + t, kv_head);
                             add_scaled(dk + (t - begin) * dim, args.softmax_scale * w.ds, query_row.query, dim);
                             add_scaled(dv + (t - begin) * value_dim, w.p, query_row.dout, value_dim);
                           }
                         });
    }
  }
  for (std::int64_t t = begin; t < end; ++t) {
    store(row_of<T>(args.dk, sequence.k_begin + t, kv_head), dk + (t - begin) * dim, dim);
    store(row_of<T>(args.dv, sequence.k_begin + t, kv_head), dv + (t - begin) * value_dim, value_dim);
  }
}

/// Keys of no sequence are in no tile, so all gradients start as zero.
template <class T>
void clear(const TensorView& tensor) {
  for (std::int64_t row = 0; row < tensor.shape[0]; ++row) {
    for (std::int64_t head = 0; head < tensor.shape[1]; ++head) {
      std::fill_n(row_of<T>(tensor, row, head), tensor.shape[2], round_to<T>(0.0));
    }
  }
}

template <class T>
void key_gradients(Context& context, const AttendBackwardArgs& args, const Sequences& sequences) {
  const std::int64_t kv_heads = args.k.shape[1];
  clear<T>(args.dk);
  clear<T>(args.dv);
  for (std::int64_t s = 0; s < sequences.count(); ++s) {
    const Sequence sequence = sequences[s];
    const std::int64_t tiles = (sequence.k_length + kTile - 1) / kTile;
    context.parallel_for(tiles * kv_heads, 1, [&](std::int64_t task_begin, std::int64_t task_end) {
      Scratch<double> sums(context, kTile * (args.q.shape[2] + args.v.shape[2]), "gradient sums of a tile of keys");
      for (std::int64_t task = task_begin; task < task_end; ++task) {
        const std::int64_t begin = task / kv_heads * kTile;
        const std::int64_t end = std::min(begin + kTile, sequence.k_length);
        tile_gradients<T>(context, args, sequence, task % kv_heads, begin, end, sums.data());
      }
    });
  }
}

}  // namespace

void attend_backward(Context& context, const AttendBackwardArgs& args) {
  const std::int64_t tile_bytes =
      kTile * (args.q.shape[2] + args.v.shape[2]) * static_cast<std::int64_t>(sizeof(double));
  require_workspace(context, context.num_threads() * tile_bytes + Sequences::bytes(args.batch),
                    "gradient sums of a tile of keys for each thread");
  const Sequences sequences(context, args.batch, args.q.shape[0], args.k.shape[0]);
  dispatch("q", args.q.dtype, FloatTypes{}, [&]<class T>() {
    query_gradients<T>(context, args, sequences);
    key_gradients<T>(context, args, sequences);
  });
}

}  // namespace moba::reference
