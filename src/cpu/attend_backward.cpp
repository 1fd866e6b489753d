// attend_backward: with the lse of the whole row the gradient is a sum over tiles of keys,
//   P = exp(s - lse), dS = P * (dP - delta), dq = scale dS K, dk = scale dSᵀ Q, dv = Pᵀ dO,
// so it is taken in two passes that each compute P and dS anew: seven products instead of five, for no shared sums.
#include "cpu/backward_inputs.h"
#include "cpu/verbs.h"

namespace moba::cpu {
namespace {

float lse_at(const ConstTensorView& lse, std::int64_t head, std::int64_t row) {
  return lse.as<float>()[head * lse.stride[0] + row * lse.stride[1]];
}

void clear_rows(const TensorView& tensor, std::int64_t begin, std::int64_t end) {
  const float zeros[256] = {};  // the largest head dim
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t head = 0; head < tensor.shape[1]; ++head) {
      kernels().store_row(zeros, 1.0f, tensor.shape[2], tensor.dtype, row_pointer(tensor, row, head));
    }
  }
}

}  // namespace

RowTerms::RowTerms(Context& context, const AttendBackwardArgs& args)
    : rows_(args.q.shape[0]),
      lse_(context, rows_ * args.q.shape[1], "lse of each row"),
      delta_(context, rows_ * args.q.shape[1], "delta of each row"),
      dlse_(context, rows_ * args.q.shape[1], "dlse of each row") {
  const Kernels& kernel = kernels();
  const std::int64_t heads = args.q.shape[1], value_dim = args.v.shape[2], runs = (rows_ + kPanel - 1) / kPanel;
  context.parallel_for(runs * heads, 1, [&](std::int64_t begin, std::int64_t end) {
    const Scratch<float> out(context, kPanel * padded(value_dim), "rows of out"),
        dout(context, kPanel * padded(value_dim), "rows of dout");
    const Scratch<float> staging(context, 4 * padded(value_dim), "rows to transpose");
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t head = task / runs, first = task % runs * kPanel, count = std::min(kPanel, rows_ - first);
      // out · dout is summed in the order of dP = dO Vᵀ: a row that sees one key has out = v, and dP - delta is 0.
      float sums[kPanel];
      const Rows out_rows = rows_of(args.out, first, head, count), dout_rows = rows_of(args.dout, first, head, count);
      if (uses_pairs(args)) {
        auto* out_lanes = reinterpret_cast<Pair*>(out.data());
        auto* dout_lanes = reinterpret_cast<Pair*>(dout.data());
        pair_kernels()->pack_lanes(pair_source(out_rows), out_lanes);
        pair_kernels()->pack_lanes(pair_source(dout_rows), dout_lanes);
        pair_kernels()->dot_lanes(dout_lanes, out_lanes, pairs_of(value_dim), sums);
      } else {
        kernel.pack_transposed(out_rows, staging.data(), out.data());
        kernel.pack_transposed(dout_rows, staging.data(), dout.data());
        kernel.dot_columns(dout.data(), out.data(), value_dim, sums);
      }
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t row = first + i;
        lse_[head * rows_ + row] = lse_at(args.lse, head, row) * static_cast<float>(kLog2E);
        delta_[head * rows_ + row] = sums[i];
        dlse_[head * rows_ + row] = args.dlse.present() ? lse_at(args.dlse, head, row) : 0.0f;
      }
    }
  });
}

void attend_backward(Context& context, const AttendBackwardArgs& args) {
  const Dims dims(args.q, args.k, args.v);
  const Sequences sequences(context, args.batch, args.q.shape[0], args.k.shape[0]);
  for_each_keyless_run(sequences, args.q.shape[0],
                       [&](std::int64_t begin, std::int64_t end) { clear_rows(args.dq, begin, end); });
  for_each_keyless_gap(sequences, args.k.shape[0], [&](std::int64_t begin, std::int64_t end) {
    clear_rows(args.dk, begin, end);
    clear_rows(args.dv, begin, end);
  });
  const RowTerms terms(context, args);
  query_gradients(context, args, dims, sequences, terms);
  key_gradients(context, args, dims, sequences, terms);
}

}  // namespace moba::cpu
