// How much memory the portable backend allows itself.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "portable/portable.h"

namespace moba::torch_ops::portable {

/// Multiples of the bytes of q, k, v and out together; the backward's includes its float32 sums of dq, dk and dv, 1.5
/// of it for 16-bit inputs.
inline constexpr std::int64_t kForwardScratch = 3, kBackwardScratch = 6;

inline std::int64_t scratch_limit(std::int64_t multiple, const at::Tensor& q, const at::Tensor& k,
                                  const at::Tensor& v) {
  const std::int64_t out = q.size(0) * q.size(1) * v.size(2);
  return multiple * (q.numel() + k.numel() + v.numel() + out) * static_cast<std::int64_t>(q.element_size());
}

/// Whether any row can have a past block that the list names.
inline bool has_history(const TensorSelection& selection, const SequenceBatch& batch) {
  return selection.blocks.size(2) > 0 && batch.max_seqlen_k > selection.block_size;
}

}  // namespace moba::torch_ops::portable
