#include "cuda/tensor_map.h"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "cuda/cuda_check.h"
#include "moba/error.h"

namespace moba::cuda {
namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// Asked of the runtime, so that the library does not link libcuda and loads on machines without a driver.
EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    constexpr unsigned kSinceVersion = 12000;
    check_cuda(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, kSinceVersion, cudaEnableDefault, &found),
        "cudaGetDriverEntryPointByVersion(cuTensorMapEncodeTiled)");
    if (found != cudaDriverEntryPointSuccess) {
      throw Error(
          ErrorCode::kUnsupported,
          "the CUDA driver has no cuTensorMapEncodeTiled; the Hopper kernels need a driver of CUDA 12 or newer. "
          "Update the driver, or use the portable backend.");
    }
    return reinterpret_cast<EncodeTiled>(entry);
  }();
  return function;
}

constexpr std::int64_t kAlignment = 16;

}  // namespace

bool is_aligned(const ConstTensorView& tensor) {
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % kAlignment != 0) return false;
  for (std::size_t axis = 0; axis < 2; ++axis) {
    if (tensor.shape[axis] > 1 && tensor.stride[axis] * size_of(tensor.dtype) % kAlignment != 0) return false;
  }
  return true;
}

CUtensorMap tensor_map(const char* argument, const ConstTensorView& tensor, int rows) {
  if (!is_aligned(tensor)) {
    throw Error(ErrorCode::kUnsupported, std::string(argument) +
                                             " has an address or a stride that is not a multiple of 16 bytes; the "
                                             "Hopper kernels read it in 16-byte pieces. Make it contiguous first.");
  }
  const std::int64_t size = size_of(tensor.dtype);
  // The stride of an axis of one element is never used, and may be anything: one that the engine accepts is put there.
  const auto stride_of = [&](std::size_t axis) {
    return static_cast<cuuint64_t>(tensor.shape[axis] > 1 ? tensor.stride[axis] * size : tensor.shape[2] * size);
  };
  const cuuint64_t extents[3] = {static_cast<cuuint64_t>(tensor.shape[2]), static_cast<cuuint64_t>(tensor.shape[0]),
                                 static_cast<cuuint64_t>(tensor.shape[1])};
  const cuuint64_t strides[2] = {stride_of(0), stride_of(1)};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(rows), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode_tiled()(
      &map, tensor.dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3,
      const_cast<void*>(tensor.data), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error(ErrorCode::kUnsupported,
                std::string(argument) + " of shape [" + std::to_string(tensor.shape[0]) + ", " +
                    std::to_string(tensor.shape[1]) + ", " + std::to_string(tensor.shape[2]) +
                    "] cannot be described to the copy engine (CUresult " + std::to_string(static_cast<int>(status)) +
                    "). Make it contiguous, or use the portable backend.");
  }
  return map;
}

}  // namespace moba::cuda
