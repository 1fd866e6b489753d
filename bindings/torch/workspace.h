// How much scratch memory a verb may hold at a time when it is called through torch.
#pragma once

#include <cstdint>

namespace moba::torch_ops {

/// Bytes; of the whole process, for the CPU and the GPU alike. 1.5 GiB until it is set.
std::int64_t workspace_limit();

/// Takes effect with the next call. Error (kInvalidArgument) where `bytes` is not positive.
void set_workspace_limit(std::int64_t bytes);

}  // namespace moba::torch_ops
