// Errors of the CUDA runtime as moba::Error.
#pragma once

#include <cuda_runtime_api.h>

namespace moba::cuda {

/// Throws Error (kUnsupported) that names the call and CUDA's own message unless `status` is success.
void check_cuda(cudaError_t status, const char* call);

/// Multiprocessors of the current device.
int multiprocessors();

}  // namespace moba::cuda
