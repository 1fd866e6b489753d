// Causal segments rewritten for a kernel that wants no more queries than keys, or exactly as many.
#pragma once

#include <ATen/ATen.h>

#include "portable/varlen.h"

namespace moba::torch_ops::portable {

/// For each row the segment of `cu` that holds it (the last one whose begin is not beyond it), clamped into range.
at::Tensor segment_of(const at::Tensor& cu, std::int64_t rows);

/// Whether each of `rows` rows lies in any segment of `cu`.
at::Tensor inside(const at::Tensor& cu, std::int64_t rows);

/// The same segments, each cut in two: the rows before its first key, without keys, and the others with all its keys,
/// so that no causal segment has more queries than keys. Segments that are not causal stay as they are.
Segments without_blind_rows(const Segments& segments);

/// Queries copied so that one stands beside every key: the row of key u is the query whose own position is u. A key
/// whose position has no query gets any row, to be passed over. Wants what `without_blind_rows` gives.
class QueriesBesideKeys {
 public:
  QueriesBesideKeys(const Segments& segments, std::int64_t total_q, std::int64_t total_k);

  /// Queries and keys are the same rows: cu_q is cu_k.
  const Segments& segments() const { return segments_; }
  /// x [Tq, ...] -> [Tk, ...].
  at::Tensor gather(const at::Tensor& x) const;
  /// lse [H, Tq] -> [H, Tk], -inf beside keys without a query.
  at::Tensor gather_lse(const at::Tensor& lse) const;
  /// x [Tk, ...] -> [Tq, ...], `missing` in rows that stand beside no key.
  at::Tensor scatter(const at::Tensor& x, double missing) const;

 private:
  Segments segments_;
  at::Tensor row_;   // int64 [Tk], clamped into range
  at::Tensor real_;  // bool [Tk]
  std::int64_t total_q_;
};

}  // namespace moba::torch_ops::portable
