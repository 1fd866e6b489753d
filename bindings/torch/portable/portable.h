// The portable backend: MoBA in ATen calls, for devices without kernels of our own. It runs on any device that ATen
// runs on; on CUDA the attention itself is ATen's fused varlen kernels (varlen.h).
//
// Nothing here waits for the device: no value is read back, every shape follows from the host-visible arguments.
// Scratch stays below 3x the bytes of q, k, v and out together in the forward pass and 6x in the backward, float32 sums
// of dq, dk and dv included, for blocks of at least 64 tokens: gate scores and query-block pairs are worked off in
// chunks. (The fused kernels round each segment up to 128 rows of float32 in the backward pass, so smaller blocks cost
// more.)
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "moba/selection.h"
#include "moba_torch/attention.h"

namespace moba::torch_ops::portable {

/// Selection of the core, with a tensor for the list.
struct TensorSelection {
  SelectionKind kind = SelectionKind::kAll;
  std::int64_t block_size = 0;
  std::int64_t window = 0;
  std::int64_t sink = 0;
  at::Tensor blocks;  // kList: int32 [Tq, selection heads, budget]
};

/// Means over blocks of options.block_size, summed in float32 in token order and rounded once, to the dtype of k or, as
/// options.representative_dtype says, not at all: k [Tk, HK, D] -> [block_rows, HK, D].
at::Tensor pool(const at::Tensor& k, const SequenceBatch& batch, const AttentionOptions& options);

/// top_k - 1 past blocks of each row, those that `options` force and the best beside them: int32 [Tq, H or HK or 1,
/// top_k - 1], ascending, -1 padded. `representatives` as pool gives them, in the dtype of q or float32.
at::Tensor select(const at::Tensor& q, const at::Tensor& representatives, const SequenceBatch& batch,
                  const AttentionOptions& options);

/// -> out [Tq, H, Dv], lse float32 [H, Tq].
std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                          const SequenceBatch& batch, const TensorSelection& selection,
                                          double softmax_scale);

/// -> dq, dk, dv. `dlse` may be absent.
std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward(const at::Tensor& dout,
                                                               const std::optional<at::Tensor>& dlse,
                                                               const at::Tensor& q, const at::Tensor& k,
                                                               const at::Tensor& v, const at::Tensor& out,
                                                               const at::Tensor& lse, const SequenceBatch& batch,
                                                               const TensorSelection& selection, double softmax_scale);

}  // namespace moba::torch_ops::portable
