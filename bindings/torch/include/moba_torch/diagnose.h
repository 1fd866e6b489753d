// What a choice of blocks is worth, on a caller's own tensors.
#pragma once

#include <ATen/ATen.h>

#include "moba_torch/attention.h"

namespace moba::torch_ops {

/// See moba/diagnose.h. On the device of q, but for the scores, which the host computes.
struct Diagnosis {
  at::Tensor blocks;  // int32 [Tq, H or HK or 1, budget]; undefined for methods without a list
  at::Tensor scores;  // of the listed blocks, NaN in free places; undefined where blocks is
  at::Tensor mass;    // [H, Tq]: the share of each row's true softmax on the keys it attends
};

/// The choice of `options` for q [Tq, H, D] and k [Tk, HK, D], of any kind, made and attended by the backend of the
/// tensors' device. Costs a full attention and waits for the device. Throws moba::Error on bad arguments.
Diagnosis diagnose(const at::Tensor& q, const at::Tensor& k, const SequenceBatch& batch,
                   const AttentionOptions& options);

}  // namespace moba::torch_ops
