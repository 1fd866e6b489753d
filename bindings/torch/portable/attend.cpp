// attend and merge, forward.

#include "portable/gather.h"
#include "portable/history.h"
#include "portable/numbers.h"
#include "portable/portable.h"
#include "portable/scratch.h"
#include "portable/sink.h"
#include "portable/spoil.h"

namespace moba::torch_ops::portable {
namespace {

// exp(lse - total), 0 where the part is empty.
at::Tensor weight(const at::Tensor& lse, const at::Tensor& total) {
  return at::exp(lse - total.masked_fill(total == -kInfinity, 0.0));
}

// The running result of a row: out [Tq, H, Dv] and lse [Tq, H], both float32.
struct Running {
  at::Tensor out, lse;

  Running(const at::Tensor& first_out, const at::Tensor& first_lse, const at::Tensor& spoilt, const at::Tensor& valid)
      : out(spoil(first_out.to(at::kFloat).contiguous(), spoilt, valid)), lse(first_lse.transpose(0, 1).contiguous()) {
    lse.masked_fill_(valid.logical_not().view({-1, 1}), -kInfinity);
  }
};

// The rows that `seen` marks have a second part over other keys.
void merge_part(Running& running, const at::Tensor& out, const at::Tensor& lse, const at::Tensor& seen) {
  const at::Tensor hidden = seen.logical_not();
  const at::Tensor part_lse = lse.transpose(0, 1).masked_fill(hidden.view({-1, 1}), -kInfinity);
  const at::Tensor total = at::logaddexp(running.lse, part_lse);
  running.out.mul_(weight(running.lse, total).unsqueeze(-1));
  running.lse = total;
  running.out.addcmul_(out.masked_fill(hidden.view({-1, 1, 1}), 0.0), weight(part_lse, total).unsqueeze(-1));
}

void merge_history(Running& running, const HistoryProblem& problem, const at::Tensor& q, const at::Tensor& k,
                   const at::Tensor& v, double softmax_scale, std::int64_t scratch_bytes) {
  const std::int64_t total_q = q.size(0), head_dim = q.size(2), value_dim = v.size(2);
  const at::Tensor q_rows = q.reshape({-1, head_dim}), k_rows = k.reshape({-1, head_dim});
  const at::Tensor v_rows = v.reshape({-1, value_dim});
  const std::int64_t key_bytes = (head_dim + value_dim) * q.element_size();
  // A pair: gathered q and the part's out. A row: one slot's out, in the order of rows.
  const ChunkCost cost{key_bytes, key_bytes, 0, value_dim * q.element_size()};
  for (const ChunkRange& range : chunks_that_fit(problem, cost, scratch_bytes)) {
    const HistoryChunk chunk(problem, range);
    auto [part, part_lse] = varlen_forward(
        gather_rows(q_rows, chunk.query_rows).unsqueeze(1), gather_rows(k_rows, chunk.key_rows).unsqueeze(1),
        gather_rows(v_rows, chunk.key_rows).unsqueeze(1), chunk.segments, softmax_scale);
    at::Tensor out = running.out.narrow(1, chunk.head_begin, chunk.heads);
    at::Tensor lse = running.lse.narrow(1, chunk.head_begin, chunk.heads);
    const at::Tensor slot_lse =
        part_lse.flatten().index_select(0, chunk.inverse.flatten()).view({total_q, chunk.heads, chunk.slots});
    const at::Tensor total = at::logsumexp(at::cat({lse.unsqueeze(-1), slot_lse}, -1), {-1});
    const at::Tensor weights = weight(slot_lse, total.unsqueeze(-1));
    out.mul_(weight(lse, total).unsqueeze(-1));
    lse.copy_(total);
    const at::Tensor part_rows = part.squeeze(1);
    for (std::int64_t slot = 0; slot < chunk.slots; ++slot) {
      out.addcmul_(gather_rows(part_rows, chunk.inverse.select(1, slot)).view(out.sizes()),
                   weights.select(2, slot).unsqueeze(-1));
    }
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                          const SequenceBatch& batch, const TensorSelection& selection,
                                          double softmax_scale) {
  const std::int64_t total_q = q.size(0), total_k = k.size(0), heads = q.size(1);
  if (total_q == 0 || total_k == 0 || batch.cu_seqlens_q.size(0) < 2) {
    return {at::zeros({total_q, heads, v.size(2)}, q.options()),
            at::full({heads, total_q}, -kInfinity, q.options().dtype(at::kFloat))};
  }
  const Sequences sequences(batch, total_q, total_k);
  const Rows rows(sequences, total_q);
  const auto finish = [&](const Running& running) {
    return std::tuple(running.out.to(q.scalar_type()), running.lse.transpose(0, 1).contiguous());
  };

  CleanValues clean(v, hides_keys(selection, batch));
  const at::Tensor first_key = sequences.k_begin.index_select(0, rows.sequence);
  const at::Tensor end_key = (first_key + rows.position + 1).clamp_max_(total_k);  // of what the row sees
  if (selection.kind == SelectionKind::kList) {
    const Blocks key_blocks(sequences, total_k, selection.block_size);
    auto [out, lse] = varlen_forward(q, k, clean.v, key_blocks.own_segments(sequences, batch), softmax_scale);
    const at::Tensor own_begin = first_key + (rows.position - rows.position.remainder(selection.block_size));
    Running running(out, lse, clean.any_between(own_begin, end_key), rows.valid);
    out.reset();
    clean.v.reset();
    if (has_history(selection, batch)) {
      const HistoryProblem problem(q, k, batch, selection.blocks, rows, key_blocks);
      // Past blocks are seen whole, so nothing is masked there, and v needs no cleaning.
      merge_history(running, problem, q, k, v, softmax_scale,
                    scratch_limit(kForwardScratch, q, k, v) - static_cast<std::int64_t>(running.out.nbytes()));
    }
    return finish(running);
  }

  const bool span = selection.kind == SelectionKind::kSpan && selection.window < batch.max_seqlen_k;
  const Segments segments{sequences.cu_q,     sequences.cu_k, batch.max_seqlen_q,
                          batch.max_seqlen_k, true,           span ? selection.window : 0};
  auto [out, lse] = varlen_forward(q, k, clean.v, segments, softmax_scale);
  if (!span) {
    return {spoil(out.contiguous(), clean.any_between(first_key, end_key), rows.valid),
            lse.masked_fill(rows.valid.logical_not(), -kInfinity)};
  }
  const at::Tensor window_begin = at::maximum(first_key, end_key - selection.window);
  at::Tensor spoilt = clean.any_between(window_begin, end_key);
  if (selection.sink == 0) {
    return {spoil(out.contiguous(), spoilt, rows.valid), lse.masked_fill(rows.valid.logical_not(), -kInfinity)};
  }
  spoilt = spoilt.logical_or(clean.any_between(first_key, at::minimum(window_begin, first_key + selection.sink)));
  Running running(out, lse, spoilt, rows.valid);
  for (const SinkPart& part : sink_parts(selection, batch, sequences, rows)) {
    auto [part_out, part_lse] = varlen_forward(q, k.index_select(0, part.key_rows),
                                               clean.v.index_select(0, part.key_rows), part.segments, softmax_scale);
    merge_part(running, part_out, part_lse, part.rows);
  }
  return finish(running);
}

}  // namespace moba::torch_ops::portable
