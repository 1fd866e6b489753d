// Rotary position embedding (Su et al., arXiv 2104.09864) in Hugging Face's layout: element i of a head turns with
// element i + D/2.
#pragma once

#include <torch/torch.h>

#include <tuple>

#include "lm/model/config.h"

namespace moba::lm {

/// cos and sin of every position times every frequency: float32 [T, 1, D/2] each.
struct RopeTable {
  torch::Tensor cos;
  torch::Tensor sin;

  /// Those of the last `rows` positions.
  RopeTable last(std::int64_t rows) const {
    return {cos.narrow(0, cos.size(0) - rows, rows), sin.narrow(0, sin.size(0) - rows, rows)};
  }
};

/// Turning speed of each pair of elements: float32 [D/2] on the CPU, radians a position. Plain, divided by the factor
/// ("linear": Chen et al., arXiv 2306.15595), or divided for long waves only ("llama3"). Computed in float32 step by
/// step as transformers does: at position 60,000 a last-bit difference of a frequency is a visible angle.
torch::Tensor rope_frequencies(const ModelConfig& config);

/// positions: any integer dtype [T]; frequencies float32 [D/2] on the same device.
RopeTable rope_table(const torch::Tensor& positions, const torch::Tensor& frequencies);

/// Position of each of `total` packed tokens within its own sequence: int32 [total], made on the device of cu_seqlens
/// (int32 or int64 [S + 1]) without waiting for it. Values out of order give positions, never an access out of bounds.
torch::Tensor packed_positions(const torch::Tensor& cu_seqlens, std::int64_t total);

/// Splits the fused projection qkv [T, (H + 2 HK) * D] and turns q and k: contiguous q [T, H, D], k [T, HK, D],
/// v [T, HK, D]; H or HK may be 0. The turn is computed in float32 and rounded to the dtype of qkv. Differentiable in
/// qkv.
std::tuple<torch::Tensor, torch::Tensor, torch::Tensor> split_and_rotate(const torch::Tensor& qkv,
                                                                         const RopeTable& table, std::int64_t heads,
                                                                         std::int64_t kv_heads);

}  // namespace moba::lm
