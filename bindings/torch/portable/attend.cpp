// attend and merge, forward.
#include <algorithm>
#include <limits>

#include "portable/history.h"
#include "portable/portable.h"
#include "portable/scratch.h"
#include "portable/sink.h"

namespace moba::torch_ops::portable {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// exp(lse - total), 0 where the part is empty.
at::Tensor weight(const at::Tensor& lse, const at::Tensor& total) {
  return at::exp(lse - total.masked_fill(total == -kInfinity, 0.0));
}

// The running result of a row: out [Tq, H, Dv] and lse [Tq, H], both float32.
struct Running {
  at::Tensor out, lse;

  Running(const at::Tensor& first_out, const at::Tensor& first_lse, const at::Tensor& valid)
      : out(first_out.to(at::kFloat).contiguous()), lse(first_lse.transpose(0, 1).contiguous()) {
    const at::Tensor invalid = valid.logical_not();
    out.masked_fill_(invalid.view({-1, 1, 1}), 0.0);
    lse.masked_fill_(invalid.view({-1, 1}), -kInfinity);
  }

  // Scales what is there to a new total; the caller then adds its parts with their weights.
  void rescale(const at::Tensor& total) {
    out.mul_(weight(lse, total).unsqueeze(-1));
    lse = total;
  }
};

// The rows that `seen` marks have a second part over other keys.
void merge_part(Running& running, const at::Tensor& out, const at::Tensor& lse, const at::Tensor& seen) {
  const at::Tensor hidden = seen.logical_not();
  const at::Tensor part_lse = lse.transpose(0, 1).masked_fill(hidden.view({-1, 1}), -kInfinity);
  const at::Tensor total = at::logaddexp(running.lse, part_lse);
  running.rescale(total);
  running.out.addcmul_(out.masked_fill(hidden.view({-1, 1, 1}), 0.0), weight(part_lse, total).unsqueeze(-1));
}

void merge_history(Running& running, const HistoryProblem& problem, const at::Tensor& q, const at::Tensor& k,
                   const at::Tensor& v, double softmax_scale, std::int64_t scratch_bytes) {
  const std::int64_t budget = problem.blocks.size(2), pair_rows = problem.total_q * problem.heads;
  const at::Tensor q_rows = q.reshape({pair_rows, q.size(2)});
  const at::Tensor k_rows = k.reshape({-1, k.size(2)}), v_rows = v.reshape({-1, v.size(2)});
  const std::int64_t pair_bytes = kPairIndexBytes + (q.size(2) + v.size(2)) * q.element_size();
  const std::int64_t step = slots_that_fit(problem, pair_bytes, scratch_bytes);
  for (std::int64_t begin = 0; begin < budget; begin += step) {
    const HistoryChunk chunk(problem, begin, std::min(step, budget - begin));
    auto [part, part_lse] = varlen_forward(
        q_rows.index_select(0, chunk.query_rows).unsqueeze(1), k_rows.index_select(0, chunk.key_rows).unsqueeze(1),
        v_rows.index_select(0, chunk.key_rows).unsqueeze(1), chunk.segments, softmax_scale);
    const at::Tensor slot_lse =
        part_lse.flatten().index_select(0, chunk.inverse.flatten()).view({pair_rows, chunk.slots});
    const at::Tensor total =
        at::logsumexp(at::cat({running.lse.view({pair_rows, 1}), slot_lse}, 1), {1}).view_as(running.lse);
    running.rescale(total);
    const at::Tensor weights = weight(slot_lse, total.view({pair_rows, 1}));
    const at::Tensor part_rows = part.squeeze(1);
    at::Tensor out_rows = running.out.view({pair_rows, -1});
    for (std::int64_t slot = 0; slot < chunk.slots; ++slot) {
      out_rows.addcmul_(part_rows.index_select(0, chunk.inverse.select(1, slot)), weights.narrow(1, slot, 1));
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

  if (selection.kind == SelectionKind::kList) {
    const Blocks key_blocks(sequences, total_k, selection.block_size);
    auto [out, lse] = varlen_forward(q, k, v, key_blocks.own_segments(sequences, batch), softmax_scale);
    Running running(out, lse, rows.valid);
    out.reset();
    if (has_history(selection, batch)) {
      const HistoryProblem problem(q, k, batch, selection.blocks, rows, key_blocks);
      merge_history(running, problem, q, k, v, softmax_scale,
                    scratch_limit(q, k, v) - static_cast<std::int64_t>(running.out.nbytes()));
    }
    return finish(running);
  }

  const bool span = selection.kind == SelectionKind::kSpan && selection.window < batch.max_seqlen_k;
  const Segments segments{sequences.cu_q,     sequences.cu_k, batch.max_seqlen_q,
                          batch.max_seqlen_k, true,           span ? selection.window : 0};
  auto [out, lse] = varlen_forward(q, k, v, segments, softmax_scale);
  if (!span || selection.sink == 0) {
    const at::Tensor invalid = rows.valid.logical_not();
    return {out.masked_fill(invalid.view({-1, 1, 1}), 0.0).contiguous(), lse.masked_fill(invalid, -kInfinity)};
  }
  Running running(out, lse, rows.valid);
  for (const SinkPart& part : sink_parts(selection, batch, sequences, rows)) {
    auto [part_out, part_lse] = varlen_forward(q, k.index_select(0, part.key_rows), v.index_select(0, part.key_rows),
                                               part.segments, softmax_scale);
    merge_part(running, part_out, part_lse, part.rows);
  }
  return finish(running);
}

}  // namespace moba::torch_ops::portable
