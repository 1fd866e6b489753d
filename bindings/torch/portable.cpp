// `portable_…`: the portable backend on any device, and on CUDA what has no native kernel.
#include "portable/portable.h"

#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "arguments.h"
#include "implementations.h"
#include "portable/decode.h"

namespace moba::torch_ops {
namespace {

void check_portable(const at::Tensor& q) {
  if (q.scalar_type() == at::kDouble) {
    throw Error(ErrorCode::kUnsupported,
                "q is of dtype float64; the portable backend takes float32, bfloat16 and "
                "float16. Convert it, or call the operators on the CPU.");
  }
}

}  // namespace

at::Tensor select_portable(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_q, const at::Tensor& cu_k,
                           std::int64_t max_q, std::int64_t max_k, std::int64_t block_size, std::int64_t top_k,
                           const OptionalTensor& representatives, bool force_previous, std::int64_t sink_blocks,
                           std::string_view share, std::string_view share_score, std::string_view representative_dtype,
                           double softmax_scale) {
  return as_operator([&] {
    const c10::OptionalDeviceGuard guard(q.device());
    const SequenceBatch batch{cu_q, cu_k, max_q, max_k};
    check_queries_and_keys(q, k);
    check_portable(q);
    check_batch(q, k, batch);
    const AttentionOptions options = gate_options(block_size, top_k, force_previous, sink_blocks, share, share_score,
                                                  representative_dtype, softmax_scale, max_k);
    const bool given = representatives.has_value() && representatives->defined();
    if (given) check_representatives(k, *representatives);
    return portable::select(q, given ? *representatives : portable::pool(k, batch, options), batch, options);
  });
}

std::tuple<at::Tensor, at::Tensor> attend_portable(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                   const at::Tensor& cu_q, const at::Tensor& cu_k, std::int64_t max_q,
                                                   std::int64_t max_k, std::string_view kind, std::int64_t block_size,
                                                   std::int64_t window, std::int64_t sink, const OptionalTensor& blocks,
                                                   double softmax_scale) {
  return as_operator([&] {
    const c10::OptionalDeviceGuard guard(q.device());
    const SequenceBatch batch{cu_q, cu_k, max_q, max_k};
    check_queries_and_keys(q, k);
    check_portable(q);
    check_values(k, v);
    check_batch(q, k, batch);
    return portable::attend(q, k, v, batch, selection_of(q, k, kind, block_size, window, sink, blocks),
                            scale_of(softmax_scale, q));
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward_portable(
    const at::Tensor& dout, const OptionalTensor& dlse, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& out, const at::Tensor& lse, const at::Tensor& cu_q, const at::Tensor& cu_k, std::int64_t max_q,
    std::int64_t max_k, std::string_view kind, std::int64_t block_size, std::int64_t window, std::int64_t sink,
    const OptionalTensor& blocks, double softmax_scale) {
  return as_operator([&] {
    const c10::OptionalDeviceGuard guard(q.device());
    const SequenceBatch batch{cu_q, cu_k, max_q, max_k};
    check_queries_and_keys(q, k);
    check_portable(q);
    check_values(k, v);
    check_batch(q, k, batch);
    check_results(q, v, dout, dlse, out, lse);
    return portable::attend_backward(dout, dlse, q, k, v, out, lse, batch,
                                     selection_of(q, k, kind, block_size, window, sink, blocks),
                                     scale_of(softmax_scale, q));
  });
}

namespace {

std::tuple<at::Tensor, at::Tensor> decode_portable(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                   const at::Tensor& representatives, std::int64_t block_size,
                                                   std::int64_t top_k, double softmax_scale) {
  return as_operator([&] {
    const c10::OptionalDeviceGuard guard(q.device());
    AttentionOptions options;
    options.block_size = block_size;
    options.top_k = top_k;
    options.softmax_scale = softmax_scale;
    check_queries_and_keys(q, k);
    check_portable(q);
    check_values(k, v);
    check_options(options);
    check_queries_and_keys(k, representatives);
    require(q.size(0) == 1 && k.size(0) >= 1, "the number of rows of q", std::to_string(q.size(0)),
            "1, beside at least 1 key", "Attend several rows with attend.");
    require(representatives.size(0) >= (k.size(0) - 1) / block_size && representatives.size(1) == k.size(1),
            "representatives", std::to_string(representatives.size(0)) + " rows",
            "one for each past block and key head", "Pool the keys.");
    return portable::attend_last(q, k, v, representatives, block_size, top_k, scale_of(softmax_scale, q));
  });
}

}  // namespace

// Decode has no operator of its own: KvCache calls it on CUDA, and tests on any device.
TORCH_LIBRARY_FRAGMENT(moba, library) {
  library.def(
      "portable_decode(Tensor q, Tensor k, Tensor v, Tensor representatives, int block_size, int top_k, "
      "float softmax_scale) -> (Tensor out, Tensor lse)");
}

TORCH_LIBRARY_IMPL(moba, CompositeExplicitAutograd, library) {
  library.impl("portable_select", select_portable);
  library.impl("portable_attend", attend_portable);
  library.impl("portable_attend_backward", attend_backward_portable);
  library.impl("portable_decode", decode_portable);
}

}  // namespace moba::torch_ops
