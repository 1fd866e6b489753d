#include "portable/varlen.h"

namespace moba::torch_ops::portable {

std::tuple<at::Tensor, at::Tensor> varlen_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                  const Segments& segments, double softmax_scale) {
  return q.is_cuda() ? varlen_forward_cuda(q, k, v, segments, softmax_scale)
                     : varlen_forward_plain(q, k, v, segments, softmax_scale);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> varlen_backward(const at::Tensor& dout, const at::Tensor& q,
                                                               const at::Tensor& k, const at::Tensor& v,
                                                               const at::Tensor& out, const at::Tensor& lse,
                                                               const Segments& segments, double softmax_scale) {
  return q.is_cuda() ? varlen_backward_cuda(dout, q, k, v, out, lse, segments, softmax_scale)
                     : varlen_backward_plain(dout, q, k, v, out, lse, segments, softmax_scale);
}

}  // namespace moba::torch_ops::portable
