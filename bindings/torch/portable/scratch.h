// How much memory the portable backend allows itself.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "portable/portable.h"

namespace moba::torch_ops::portable {

/// Sorting and indexing a pair: key and its sorted copy 4 + 4, order and sort buffers 8 + 12, inverse 8, query row 8,
/// lse and weight 4 + 4.
inline constexpr std::int64_t kPairIndexBytes = 52;

/// 3x the bytes of q, k, v and out.
inline std::int64_t scratch_limit(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const std::int64_t out = q.size(0) * q.size(1) * v.size(2);
  return 3 * (q.numel() + k.numel() + v.numel() + out) * static_cast<std::int64_t>(q.element_size());
}

/// Whether any row can have a past block that the list names.
inline bool has_history(const TensorSelection& selection, const SequenceBatch& batch) {
  return selection.blocks.size(2) > 0 && batch.max_seqlen_k > selection.block_size;
}

}  // namespace moba::torch_ops::portable
