// The decoder's elementwise parts on the CPU, each in one pass over memory where ATen makes three to seven: between
// products as small as a small model's these passes are half of what a prompt costs outside attention. Arithmetic is
// float32, results are rounded once.
#pragma once

#include <torch/torch.h>

#include <vector>

namespace moba::lm {

/// Whether the functions below take tensors like x: float32 or bfloat16 on the CPU.
bool has_row_kernels(const torch::Tensor& x);

/// x [R, N] times weights [M_i, N] side by side: [R, sum M_i], all contiguous and of one dtype. For few rows, where the
/// weights are read once and nothing else costs: a general product first lays them out anew.
torch::Tensor project_few_rows(const torch::Tensor& x, const std::vector<torch::Tensor>& weights);

/// x / rms(x) * weight over the last axis: x [..., N] contiguous, weight [N] in x's dtype -> like x.
torch::Tensor rms_norm_rows(const torch::Tensor& x, const torch::Tensor& weight, double epsilon);

/// silu(gate) * up, gate and up [T, N] contiguous -> [T, N].
torch::Tensor swiglu_rows(const torch::Tensor& gate, const torch::Tensor& up);

/// target[t, h] = source[t, h] with element i turned against element i + D/2 by the angle of row t and i, backwards for
/// sign -1: both [T, heads, D] of one dtype, elements of a head side by side, target not source; cos and sin float32
/// [T, 1, D/2] contiguous.
void rotate_rows(torch::Tensor& target, const torch::Tensor& source, const torch::Tensor& cos, const torch::Tensor& sin,
                 float sign);

}  // namespace moba::lm
