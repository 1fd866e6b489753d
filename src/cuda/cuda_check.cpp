#include "cuda/cuda_check.h"

#include <string>

#include "moba/error.h"

namespace moba::cuda {

void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  throw Error(ErrorCode::kUnsupported, std::string(call) + " failed: " + cudaGetErrorString(status) +
                                           ". An error of an earlier kernel is reported here too; run with "
                                           "CUDA_LAUNCH_BLOCKING=1 to find the call that caused it.");
}

int multiprocessors() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return count;
}

}  // namespace moba::cuda
