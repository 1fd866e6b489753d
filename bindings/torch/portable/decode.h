// One new token over a cache: everything is known to the host and small, so a few matrix products do, and what counts
// is how many kernels are launched.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>

#include "moba/options.h"

namespace moba::torch_ops::portable {

/// Whether `attend_last` serves: one row, a choice of its own for each head with nothing forced and representatives in
/// the dtype of the keys, and copies of the chosen blocks, one for each query head, that are small enough.
bool suits_attend_last(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionOptions& options);

/// MoBA of the last token of one sequence: q [1, H, D], k [Tk, HK, D], v [Tk, HK, Dv] with Tk >= 1, `representatives`
/// [at least (Tk - 1) / B, HK, D] -> out [1, H, Dv], lse float32 [H, 1].
std::tuple<at::Tensor, at::Tensor> attend_last(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                               const at::Tensor& representatives, std::int64_t block_size,
                                               std::int64_t top_k, double softmax_scale);

}  // namespace moba::torch_ops::portable
