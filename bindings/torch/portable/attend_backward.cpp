// attend_backward: the gradient is a sum over parts, each computed with the lse and the output of the whole row.
#include <algorithm>

#include "portable/gather.h"
#include "portable/history.h"
#include "portable/portable.h"
#include "portable/scratch.h"
#include "portable/sink.h"

namespace moba::torch_ops::portable {
namespace {

// Everything but the keys' side of one backward pass.
struct Upstream {
  const at::Tensor& dout;  // [Tq, H, Dv]
  const at::Tensor& out;   // [Tq, H, Dv]
  const at::Tensor& lse;   // [H, Tq]
};

// Sums in float32. dq [Tq, H, D], dk [Tk, HK, D], dv [Tk, HK, Dv].
struct Gradients {
  at::Tensor dq, dk, dv;

  Gradients(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    const auto options = q.options().dtype(at::kFloat);
    dq = at::empty(q.sizes(), options);
    dk = at::empty(k.sizes(), options);
    dv = at::empty(v.sizes(), options);
  }
  std::int64_t nbytes() const { return static_cast<std::int64_t>(dq.nbytes() + dk.nbytes() + dv.nbytes()); }
};

// Bytes of float32 dq that the fused kernel keeps for each segment beyond its rows: it rounds segments up.
std::int64_t padding_bytes(std::int64_t segments, std::int64_t width) {
  constexpr std::int64_t kPaddingRows = 128;
  return segments * kPaddingRows * width * static_cast<std::int64_t>(sizeof(float));
}

// The part whose rows and keys are the whole tensors, as many key heads at a time as fit into `scratch_bytes`.
void write_first_part(Gradients& gradients, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const Upstream& up, const Segments& segments, double softmax_scale, std::int64_t scratch_bytes) {
  const std::int64_t kv_heads = k.size(1), group = q.size(1) / kv_heads, width = std::max(q.size(2), v.size(2));
  // For each query head: dq in float32 and its result, contiguous dout and out, and dk and dv before the sum over the
  // group.
  const std::int64_t head_bytes = padding_bytes(segments.cu_q.size(0), width) + q.size(0) * width * 4 +
                                  (3 * q.size(0) + 2 * k.size(0)) * width * q.element_size();
  const std::int64_t step =
      std::clamp<std::int64_t>(scratch_bytes / std::max<std::int64_t>(1, head_bytes * group), 1, kv_heads);
  for (std::int64_t begin = 0; begin < kv_heads; begin += step) {
    const std::int64_t count = std::min(step, kv_heads - begin);
    const auto queries = [&](const at::Tensor& x) { return x.narrow(1, begin * group, count * group); };
    const auto keys = [&](const at::Tensor& x) { return x.narrow(1, begin, count); };
    auto [dq, dk, dv] = varlen_backward(queries(up.dout), queries(q), keys(k), keys(v), queries(up.out),
                                        up.lse.narrow(0, begin * group, count * group), segments, softmax_scale);
    queries(gradients.dq).copy_(dq);
    keys(gradients.dk).copy_(dk);
    keys(gradients.dv).copy_(dv);
  }
}

void add_history(Gradients& gradients, const HistoryProblem& problem, const at::Tensor& q, const at::Tensor& k,
                 const at::Tensor& v, const Upstream& up, double softmax_scale, std::int64_t scratch_bytes) {
  const std::int64_t total_q = q.size(0), head_dim = q.size(2), value_dim = v.size(2);
  const at::Tensor q_rows = q.reshape({-1, head_dim}), k_rows = k.reshape({-1, head_dim});
  const at::Tensor v_rows = v.reshape({-1, value_dim});
  const at::Tensor dout_rows = up.dout.reshape({-1, value_dim}), out_rows = up.out.reshape({-1, value_dim});
  const at::Tensor lse_rows = up.lse.transpose(0, 1).flatten();
  const std::int64_t width = std::max(head_dim, value_dim);
  // A pair: gathered q, dout, out, and dq; the fused kernel keeps dq in float32 beside it. A key: gathered k and v, and
  // their gradients.
  const std::int64_t key_bytes = 2 * (head_dim + value_dim) * q.element_size();
  const ChunkCost cost{key_bytes + 4 * width, key_bytes, padding_bytes(1, width), 0};
  for (const ChunkRange& range : chunks_that_fit(problem, cost, scratch_bytes)) {
    const HistoryChunk chunk(problem, range);
    const auto gather = [](const at::Tensor& rows, const at::Tensor& index) {
      return gather_rows(rows, index).unsqueeze(1);
    };
    auto [part_dq, part_dk, part_dv] = varlen_backward(
        gather(dout_rows, chunk.query_rows), gather(q_rows, chunk.query_rows), gather(k_rows, chunk.key_rows),
        gather(v_rows, chunk.key_rows), gather(out_rows, chunk.query_rows),
        lse_rows.index_select(0, chunk.query_rows).unsqueeze(0), chunk.segments, softmax_scale);
    const at::Tensor slot_dq = gather_rows(part_dq.squeeze(1), chunk.inverse.flatten());
    part_dq.reset();
    gradients.dq.narrow(1, chunk.head_begin, chunk.heads)
        .add_(slot_dq.view({total_q, chunk.heads, chunk.slots, head_dim}).sum(2, /*keepdim=*/false, at::kFloat));
    const at::Tensor sum_rows = chunk.sum_rows(problem);
    chunk.add_key_gradient(gradients.dk.narrow(1, range.head_begin, range.heads), part_dk, sum_rows);
    chunk.add_key_gradient(gradients.dv.narrow(1, range.head_begin, range.heads), part_dv, sum_rows);
  }
}

Gradients backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Upstream& up,
                   const SequenceBatch& batch, const TensorSelection& selection, double softmax_scale) {
  const Sequences sequences(batch, q.size(0), k.size(0));
  const Rows rows(sequences, q.size(0));
  const at::Tensor invalid = rows.valid.logical_not().view({-1, 1, 1});
  Gradients gradients(q, k, v);
  const std::int64_t scratch_bytes = scratch_limit(kBackwardScratch, q, k, v) - gradients.nbytes();

  if (selection.kind == SelectionKind::kList) {
    const Blocks key_blocks(sequences, k.size(0), selection.block_size);
    write_first_part(gradients, q, k, v, up, key_blocks.own_segments(sequences, batch), softmax_scale, scratch_bytes);
    gradients.dq.masked_fill_(invalid, 0.0);
    if (has_history(selection, batch)) {
      const HistoryProblem problem(q, k, batch, selection.blocks, rows, key_blocks);
      add_history(gradients, problem, q, k, v, up, softmax_scale, scratch_bytes);
    }
    return gradients;
  }

  const bool span = selection.kind == SelectionKind::kSpan && selection.window < batch.max_seqlen_k;
  const Segments segments{sequences.cu_q,     sequences.cu_k, batch.max_seqlen_q,
                          batch.max_seqlen_k, true,           span ? selection.window : 0};
  write_first_part(gradients, q, k, v, up, segments, softmax_scale, scratch_bytes);
  gradients.dq.masked_fill_(invalid, 0.0);
  if (span && selection.sink > 0) {
    for (const SinkPart& part : sink_parts(selection, batch, sequences, rows)) {
      auto [dq, dk, dv] =
          varlen_backward(up.dout, q, k.index_select(0, part.key_rows), v.index_select(0, part.key_rows), up.out,
                          up.lse, part.segments, softmax_scale);
      gradients.dq.add_(dq.masked_fill(part.rows.logical_not().view({-1, 1, 1}), 0.0));
      gradients.dk.index_add_(0, part.key_rows, dk.to(at::kFloat));
      gradients.dv.index_add_(0, part.key_rows, dv.to(at::kFloat));
    }
  }
  return gradients;
}

// dS = P * dlse, the share of a gradient of lse, is what a value of 1 with dout = dlse and out = 0 would give. float32
// is carried through a 16-bit dout in three pieces.
constexpr std::int64_t kLseValueDim = 8, kLsePieces = 3;

at::Tensor split_pieces(const at::Tensor& dlse, const at::Tensor& q) {
  at::Tensor rest = dlse.transpose(0, 1).to(at::kFloat).contiguous();
  at::Tensor pieces = at::zeros({q.size(0), q.size(1), kLseValueDim}, q.options());
  for (std::int64_t i = 0; i < kLsePieces; ++i) {
    const at::Tensor piece = rest.to(q.scalar_type());
    pieces.select(2, i).copy_(piece);
    rest = rest - piece;
  }
  return pieces;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward(const at::Tensor& dout,
                                                               const std::optional<at::Tensor>& dlse,
                                                               const at::Tensor& q, const at::Tensor& k,
                                                               const at::Tensor& v, const at::Tensor& out,
                                                               const at::Tensor& lse, const SequenceBatch& batch,
                                                               const TensorSelection& selection, double softmax_scale) {
  if (q.size(0) == 0 || k.size(0) == 0 || batch.cu_seqlens_q.size(0) < 2) {
    return {at::zeros(q.sizes(), q.options()), at::zeros(k.sizes(), k.options()), at::zeros(v.sizes(), v.options())};
  }
  Gradients gradients = backward(q, k, v, {dout, out, lse}, batch, selection, softmax_scale);
  if (dlse.has_value() && dlse->defined()) {
    at::Tensor ones = at::zeros({v.size(0), v.size(1), kLseValueDim}, v.options());
    ones.narrow(2, 0, kLsePieces).fill_(1.0);
    const at::Tensor pieces = split_pieces(*dlse, q), no_out = at::zeros_like(pieces);
    const Gradients extra = backward(q, k, ones, {pieces, no_out, lse}, batch, selection, softmax_scale);
    gradients.dq.add_(extra.dq);
    gradients.dk.add_(extra.dk);
  }
  return {gradients.dq.to(q.scalar_type()), gradients.dk.to(k.scalar_type()), gradients.dv.to(v.scalar_type())};
}

}  // namespace moba::torch_ops::portable
