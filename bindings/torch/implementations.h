// What the dispatcher's keys are bound to: the operators through the core, and through the portable backend.
#pragma once

#include <cstdint>
#include <string_view>
#include <tuple>

#include "operators.h"

namespace moba::torch_ops {

using SelectImplementation = at::Tensor(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_q,
                                        const at::Tensor& cu_k, std::int64_t max_q, std::int64_t max_k,
                                        std::int64_t block_size, std::int64_t top_k,
                                        const OptionalTensor& representatives, bool force_previous,
                                        std::int64_t sink_blocks, std::string_view share, std::string_view share_score,
                                        std::string_view representative_dtype, double softmax_scale);

using AttendImplementation = std::tuple<at::Tensor, at::Tensor>(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cu_q, const at::Tensor& cu_k,
    std::int64_t max_q, std::int64_t max_k, std::string_view kind, std::int64_t block_size, std::int64_t window,
    std::int64_t sink, const OptionalTensor& blocks, double softmax_scale);

using AttendBackwardImplementation = std::tuple<at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor& dout, const OptionalTensor& dlse, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& out, const at::Tensor& lse, const at::Tensor& cu_q, const at::Tensor& cu_k, std::int64_t max_q,
    std::int64_t max_k, std::string_view kind, std::int64_t block_size, std::int64_t window, std::int64_t sink,
    const OptionalTensor& blocks, double softmax_scale);

// The core's backend for the tensors' device (Engine in core.h).
SelectImplementation select_core;
AttendImplementation attend_core;
AttendBackwardImplementation attend_backward_core;

// The portable backend, on any device.
SelectImplementation select_portable;
AttendImplementation attend_portable;
AttendBackwardImplementation attend_backward_portable;

}  // namespace moba::torch_ops
