#include "portable/sink.h"

#include <algorithm>

namespace moba::torch_ops::portable {

std::vector<SinkPart> sink_parts(const TensorSelection& selection, const SequenceBatch& batch,
                                 const Sequences& sequences, const Rows& rows) {
  const std::int64_t window = selection.window, sink = std::min(selection.sink, batch.max_seqlen_k);
  const at::Tensor number = range(sequences.count, sequences.q_begin);
  const at::Tensor key_rows =
      (sequences.k_begin.unsqueeze(1) + range(sink, number)).clamp_max_(sequences.total_k - 1).flatten();
  const at::Tensor q_end = sequences.q_begin + sequences.q_length;
  // The packed row of a position.
  const auto row_at = [&](std::int64_t position) {
    return sequences.q_begin + at::minimum((position - sequences.shift()).clamp_min(0), sequences.q_length);
  };
  const auto part = [&](const at::Tensor& begin, const at::Tensor& end, const at::Tensor& keys, bool causal) {
    // Three segments a sequence: the rows with their keys; the rows up to the next sequence's, without keys; and the
    // gathered keys that are not used, without rows.
    const at::Tensor next = at::cat({begin.slice(0, 1), q_end.slice(0, -1)});
    const at::Tensor first_key = number * sink, last_key = first_key + keys;
    SinkPart result;
    result.key_rows = key_rows;
    result.segments.cu_q = at::cat({at::stack({begin, end, next}, 1).flatten(), q_end.slice(0, -1)}).to(at::kInt);
    result.segments.cu_k =
        at::cat({at::stack({first_key, last_key, last_key}, 1).flatten(), (first_key + sink).slice(0, -1)})
            .to(at::kInt);
    result.segments.max_q = causal ? std::min(sink, batch.max_seqlen_q) : batch.max_seqlen_q;
    result.segments.max_k = sink;
    result.segments.causal = causal;
    return result;
  };
  const at::Tensor square_begin = row_at(window), square_end = row_at(window + sink);
  SinkPart square = part(square_begin, square_end, (sequences.k_length - window).clamp(0, sink), true);
  square.rows = rows.valid.logical_and(rows.position >= window).logical_and_(rows.position < window + sink);
  SinkPart rest = part(square_end, q_end, sequences.k_length.clamp_max(sink), false);
  rest.rows = rows.valid.logical_and(rows.position >= window + sink);
  return {square, rest};
}

}  // namespace moba::torch_ops::portable
