// What a choice of blocks is worth: the list, its scores, and the share of the true attention that it catches.
#pragma once

#include "moba/backend.h"
#include "moba/options.h"

namespace moba {

/// Memory for what `diagnose` finds, lent by the caller.
struct Diagnosis {
  /// As plan_selection() gives it; a list with memory for `blocks`.
  Selection selection;
  /// The score of each listed block, in double precision before it is stored: float32 (float64 beside float64)
  /// [Tq, selection heads, budget], in the order of `blocks`; NaN in free places, and where a forced block has no
  /// number for a score. Absent where there is no list.
  TensorView scores;
  /// float32 (float64 beside float64) [H, Tq]: of each row's softmax over all its keys, the share that lies on the keys
  /// it attends: between 0 and 1; 1 for a row that sees no key.
  TensorView mass;
};

/// Makes the choice of `options` for q [Tq, H, D] and k [Tk, HK, D], of any kind, and fills what is lent. The mass is
/// exp(lse of the choice - lse of full attention), both from `backend` (the reference for an oracle). Costs a full
/// attention; scratch beyond it is once the bytes of q, twice those of an lse, and the representatives. Throws Error
/// (kInvalidArgument) as `select` and `attend` do.
void diagnose(Context& context, const Backend& backend, const AttentionOptions& options, ConstTensorView q,
              ConstTensorView k, const PackedBatch& batch, Diagnosis& result);

/// The scores alone, of the listed blocks of args.selection, as Diagnosis::scores has them. All tensors are in host
/// memory; q and representatives may be of any float dtype. O(Tq * H * D) for each past block.
void list_scores(Context& context, const SelectArgs& args, const TensorView& scores);

}  // namespace moba
