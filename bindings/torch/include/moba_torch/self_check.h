// The proof that the sparse path is exact, on a caller's own tensors.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "moba/pipeline.h"
#include "moba_torch/attention.h"

namespace moba::torch_ops {

/// MoBA with every block of options.block_size chosen against full attention, forward and backward, with the backend of
/// the tensors' device. Shapes as in attention(). Waits for the device. Throws moba::Error on bad arguments; a mismatch
/// is reported, not thrown.
SelfCheckReport self_check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const SequenceBatch& batch,
                           const AttentionOptions& options, std::uint64_t seed = 0);

}  // namespace moba::torch_ops
