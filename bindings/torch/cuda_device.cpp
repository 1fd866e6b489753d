#include "cuda_device.h"

#include <c10/util/Exception.h>
#include <dlfcn.h>

namespace moba::torch_ops {

int compute_capability(int device) {
  // cudaDeviceGetAttribute(value, cudaDevAttrComputeCapabilityMajor, device)
  using GetAttribute = int (*)(int*, int, int);
  constexpr int kComputeCapabilityMajor = 75;
  static const auto get_attribute = reinterpret_cast<GetAttribute>(dlsym(RTLD_DEFAULT, "cudaDeviceGetAttribute"));
  int major = 0;
  TORCH_CHECK(get_attribute != nullptr && get_attribute(&major, kComputeCapabilityMajor, device) == 0,
              "the CUDA runtime did not tell the compute capability of device ", device);
  return major;
}

void* current_stream(int device) {
  // Part of torch's stable C interface. Python loads the library out of the reach of RTLD_DEFAULT.
  using GetStream = int (*)(int, void**);
  static const auto get_stream = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<GetStream>(library == nullptr ? nullptr
                                                          : dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  void* stream = nullptr;
  TORCH_CHECK(get_stream != nullptr && get_stream(device, &stream) == 0,
              "torch did not tell its stream on CUDA device ", device);
  return stream;
}

}  // namespace moba::torch_ops
