// NaN and infinity in v. The fused kernels multiply what a mask hides by zero, and zero times NaN is NaN: it would
// reach rows that do not attend the key. So masked parts run over cleaned values, and rows that attend a key with a
// value that is not finite become NaN afterwards, in all columns.
#pragma once

#include <ATen/ATen.h>

#include "portable/portable.h"
#include "portable/segments.h"

namespace moba::torch_ops::portable {

/// Whether a masked part hides a key of a tile from a row: not where the only row of a sequence sees its end.
inline bool hides_keys(const TensorSelection& selection, const SequenceBatch& batch) {
  return batch.max_seqlen_q > 1 || selection.kind == SelectionKind::kSpan;
}

struct CleanValues {
  at::Tensor v;       // [Tk, HK, Dv]: zeros in the place of values that are not finite, and of their neighbours
  at::Tensor before;  // int64 [HK, Tk + 1]: up to a constant for each head, how many keys before this one were cleaned;
                      // undefined where v is as it was

  CleanValues(const at::Tensor& dirty, bool needed);

  /// Whether a cleaned key lies in [first, last) of the packed keys, both int64 [Tq]: bool [Tq, HK].
  at::Tensor any_between(const at::Tensor& first, const at::Tensor& last) const;
};

/// out [Tq, H, Dv] with NaN where `spoilt`, bool [Tq, HK], and 0 where not `valid`, bool [Tq].
at::Tensor spoil(const at::Tensor& out, const at::Tensor& spoilt, const at::Tensor& valid);

}  // namespace moba::torch_ops::portable
