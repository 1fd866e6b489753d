// The tests of the CUDA backend, for a machine with a Hopper GPU. On any other they are skipped, and say so.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdio>

namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE in CMakeLists.txt
constexpr int kHopper = 9;

const char* missing_gpu() {
  int count = 0, major = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) return cudaGetErrorString(error);
  if (count == 0 || cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess) {
    return "no CUDA device";
  }
  return major == kHopper ? nullptr : "device 0 is not of compute capability 9.0";
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (testing::GTEST_FLAG(list_tests)) return RUN_ALL_TESTS();
  if (const char* why = missing_gpu()) {
    std::printf("cuda_tests: skipped, they need a Hopper GPU: %s\n", why);
    return kSkipped;
  }
  return RUN_ALL_TESTS();
}
