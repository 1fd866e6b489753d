// What the binding asks of CUDA itself. By name, from libraries that torch has loaded: nothing of CUDA is linked.
#pragma once

namespace moba::torch_ops {

/// The major compute capability of a CUDA device. Throws where the CUDA runtime is not in the process.
int compute_capability(int device);

/// torch's current stream on a device, a cudaStream_t.
void* current_stream(int device);

}  // namespace moba::torch_ops
