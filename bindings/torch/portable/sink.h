// The sink part of span attention: the first tokens of a sequence for rows whose window does not reach them.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "portable/portable.h"
#include "portable/segments.h"

namespace moba::torch_ops::portable {

/// Some rows beside the first keys of their sequence.
struct SinkPart {
  at::Tensor key_rows;  // int64 [sequences * sink]: the gathered keys
  at::Tensor rows;      // bool [Tq]: the rows that this part concerns
  Segments segments;    // over q and the gathered keys
};

/// Row p sees the window (p - w, p] and, apart from it, the keys below min(sink, p - w + 1). So for p in [w, w + sink)
/// that is a causal square of shifted rows, and from p = w + sink on all sink keys: two parts, disjoint in rows.
std::vector<SinkPart> sink_parts(const TensorSelection& selection, const SequenceBatch& batch,
                                 const Sequences& sequences, const Rows& rows);

}  // namespace moba::torch_ops::portable
