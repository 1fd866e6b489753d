// The decoder's elementwise parts, written for few passes over memory: in eager mode each pass costs as much as a small
// matrix product.
#pragma once

#include <torch/torch.h>

#include <functional>
#include <vector>

namespace moba::lm {

/// x [T, N] times weights [M_i, N] side by side, cast to x's dtype: [T, sum M_i]. Gradients arrive in the weights' own
/// dtype.
torch::Tensor project(const torch::Tensor& x, const std::vector<torch::Tensor>& weights);

/// x / rms(x) * weight over the last axis (Zhang & Sennrich, arXiv 1910.07467): x [..., N], weight [N] of any dtype.
/// The mean square and the product are float32 inside; the result is rounded to x's dtype.
torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double epsilon);

/// silu(gate) * up (Shazeer, arXiv 2002.05202), gate and up [T, N]. Keeps only its inputs for the backward pass, where
/// silu(gate) is computed again.
torch::Tensor swiglu(const torch::Tensor& gate, const torch::Tensor& up);

/// Runs body(x) without keeping what its backward pass needs, and runs it again there. `parameters` are all the tensors
/// that `body` reads and that want gradients. The body must be deterministic.
torch::Tensor recompute_in_backward(const std::function<torch::Tensor(const torch::Tensor&)>& body,
                                    const torch::Tensor& x, const std::vector<torch::Tensor>& parameters);

}  // namespace moba::lm
