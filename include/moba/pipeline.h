// The whole data flow: q, k, v -> pool -> score -> select -> attend -> merge -> out, lse; and the proof that it is
// exact.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "moba/backend.h"
#include "moba/options.h"

namespace moba {

// Every function below checks what the host can see (shape, dtype, stride, device, options) and throws Error before
// anything is written; then it calls the backend.

/// The Selection a method makes over a problem, before its list has memory: `kind`, numbers and, for a list, the shape
/// that `blocks` must have (data null). No row has more blocks than the longest sequence, so with its length known the
/// list is never wider than that, whatever top_k. Errors name the option that is out of range.
Selection plan_selection(const AttentionOptions& options, std::int64_t total_q, std::int64_t heads,
                         std::int64_t kv_heads, std::int64_t max_seqlen_k = std::numeric_limits<std::int64_t>::max());

/// What decides beside the scores, with the default scale resolved for q [Tq, H, D].
ChoiceRule rule_of(const AttentionOptions& options, const ConstTensorView& q);

/// Fills `selection` (planned by `plan_selection`, `blocks.data` set by the caller) for q and k. `representatives` may
/// be absent: then they are pooled in scratch, in the dtype that the options say; given ones are taken in their own
/// (that of k, or float32). A no-op for kinds without a list. With a page table k and the
/// representatives, which must be present, are those of the pool (see SelectArgs).
void select(Context& context, const Backend& backend, const AttentionOptions& options, ConstTensorView q,
            ConstTensorView k, ConstTensorView representatives, const PackedBatch& batch, Selection& selection,
            const PageTable& page_table = {});

/// The other verbs, checked: see the structs of backend.h for shapes and meaning.
void pool(Context& context, const Backend& backend, const PoolArgs& args);
void score(Context& context, const Backend& backend, const ScoreArgs& args);
void invert(Context& context, const Backend& backend, const InvertArgs& args);
void merge(Context& context, const Backend& backend, const MergeArgs& args);

/// Checks, then backend.attend. softmax_scale 0 means 1/sqrt(D).
void attend(Context& context, const Backend& backend, AttendArgs args);

/// Checks, then backend.attend_backward. softmax_scale 0 means 1/sqrt(D).
void attend_backward(Context& context, const Backend& backend, AttendBackwardArgs args);

/// select + attend with the list in scratch: out [Tq, H, Dv], lse [H, Tq]. Cost is
/// O(Tq * H * (n * D + top_k * B * (D + Dv))) for n blocks a sequence.
void attention(Context& context, const Backend& backend, const AttentionOptions& options, ConstTensorView q,
               ConstTensorView k, ConstTensorView v, const PackedBatch& batch, Partial result);

/// What `self_check` found. Errors are max |a - b| / max |b| over each tensor.
struct SelfCheckReport {
  double out_error = 0, lse_error = 0, dq_error = 0, dk_error = 0, dv_error = 0;
  double tolerance = 0;  // for the dtype
  bool passed = false;
  std::string summary() const;
};

/// MoBA with every block chosen against full attention on the caller's own tensors, forward and backward (the MoBA
/// author's "zero-sparsity equivalence"). The gradient of the output is pseudo-random from `seed`.
SelfCheckReport self_check(Context& context, const Backend& backend, const AttentionOptions& options, ConstTensorView q,
                           ConstTensorView k, ConstTensorView v, const PackedBatch& batch, std::uint64_t seed = 0);

}  // namespace moba
