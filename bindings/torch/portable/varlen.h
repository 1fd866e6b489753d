// Attention over segments of a packed batch: the one place where the portable backend meets a fused kernel.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>

namespace moba::torch_ops::portable {

/// Segment i joins the query rows [cu_q[i], cu_q[i+1]) with the keys [cu_k[i], cu_k[i+1]). Both are int32 [segments+1],
/// non-decreasing, on the device of q; either side of a segment may be empty.
struct Segments {
  at::Tensor cu_q;
  at::Tensor cu_k;
  std::int64_t max_q = 0;  // upper bounds; rows beyond them are not computed
  std::int64_t max_k = 0;
  bool causal = false;      // aligned to the last query and the last key of the segment
  std::int64_t window = 0;  // with causal: the last `window` keys only, the row's own among them; 0 for all
  // That every key of the tensors lies in a segment with rows, or that no one reads its gradient.
  bool every_key_has_rows = false;
};

/// q [Tq, H, D], k [Tk, HK, D], v [Tk, HK, Dv] -> out [Tq, H, Dv] in the dtype of q, lse [H, Tq] float32.
/// A row of a segment that sees no key is {0, -inf}; rows of no segment are unspecified.
std::tuple<at::Tensor, at::Tensor> varlen_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                  const Segments& segments, double softmax_scale);

/// The share of these segments in the gradient, when `out` and `lse` belong to the whole row: P = exp(s - lse),
/// dS = P * (dout v - sum(dout * out)). -> dq [Tq, H, D], dk [Tk, HK, D], dv [Tk, HK, Dv] in the dtype of q.
/// dq is 0 for rows that see no key here (rows of no segment: unspecified); dk and dv are 0 for keys that no row sees.
std::tuple<at::Tensor, at::Tensor, at::Tensor> varlen_backward(const at::Tensor& dout, const at::Tensor& q,
                                                               const at::Tensor& k, const at::Tensor& v,
                                                               const at::Tensor& out, const at::Tensor& lse,
                                                               const Segments& segments, double softmax_scale);

// The two implementations behind these: ATen's fused CUDA kernels, and plain loops that let every line of the portable
// backend but this one be tested on a CPU.
std::tuple<at::Tensor, at::Tensor> varlen_forward_cuda(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                       const Segments& segments, double softmax_scale);
std::tuple<at::Tensor, at::Tensor, at::Tensor> varlen_backward_cuda(const at::Tensor& dout, const at::Tensor& q,
                                                                    const at::Tensor& k, const at::Tensor& v,
                                                                    const at::Tensor& out, const at::Tensor& lse,
                                                                    const Segments& segments, double softmax_scale);
std::tuple<at::Tensor, at::Tensor> varlen_forward_plain(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                        const Segments& segments, double softmax_scale);
std::tuple<at::Tensor, at::Tensor, at::Tensor> varlen_backward_plain(const at::Tensor& dout, const at::Tensor& q,
                                                                     const at::Tensor& k, const at::Tensor& v,
                                                                     const at::Tensor& out, const at::Tensor& lse,
                                                                     const Segments& segments, double softmax_scale);

}  // namespace moba::torch_ops::portable
