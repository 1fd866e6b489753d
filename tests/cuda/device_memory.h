// Device memory for the tests of the CUDA kernels: a context that lends it poisoned, and copies of host tensors.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cases/problem.h"

namespace moba::cuda_tests {

inline void must(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

/// Lends device memory full of NaN, on a stream of its own. `most_bytes`: the most that was lent at once, for the tests
/// of the workspace limit.
class DeviceContext : public SerialContext {
 public:
  explicit DeviceContext(std::int64_t limit = std::int64_t{1536} << 20, bool poison = true)
      : limit_(limit), poison_(poison) {
    must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    // Freed memory stays with the pool, so that allocation costs no time between kernels.
    cudaMemPool_t pool{};
    must(cudaDeviceGetDefaultMemPool(&pool, 0));
    std::uint64_t keep = ~std::uint64_t{0};
    must(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
  }
  ~DeviceContext() override { cudaStreamDestroy(stream_); }
  DeviceContext(const DeviceContext&) = delete;
  DeviceContext& operator=(const DeviceContext&) = delete;

  void* allocate(std::size_t bytes) override {
    void* pointer = nullptr;
    const std::size_t size = bytes == 0 ? 1 : bytes;
    if (cudaMallocAsync(&pointer, size, stream_) != cudaSuccess) return nullptr;
    if (poison_) must(cudaMemsetAsync(pointer, 0xff, size, stream_));
    return pointer;
  }
  void release(void* pointer) noexcept override { cudaFreeAsync(pointer, stream_); }
  void* stream() const override { return stream_; }
  std::int64_t workspace_limit() const override { return limit_; }

 private:
  cudaStream_t stream_ = nullptr;
  std::int64_t limit_;
  bool poison_;
};

/// A host tensor's copy in device memory; new ones without a source are poisoned as the host's are.
class DeviceTensor {
 public:
  explicit DeviceTensor(const cases::HostTensor& host) : view_(host.view()) {
    bytes_ = static_cast<std::size_t>(host.numel() * size_of(host.dtype()));
    must(cudaMalloc(&data_, bytes_ == 0 ? 16 : bytes_));
    must(cudaMemcpy(data_, view_.data, bytes_, cudaMemcpyHostToDevice));
    view_.data = data_;
    view_.device = {DeviceKind::kCuda, 0};
  }
  ~DeviceTensor() { cudaFree(data_); }
  DeviceTensor(const DeviceTensor&) = delete;
  DeviceTensor& operator=(const DeviceTensor&) = delete;

  const TensorView& view() const { return view_; }
  void copy_to(const cases::HostTensor& host) const {
    must(cudaMemcpy(host.view().data, data_, bytes_, cudaMemcpyDeviceToHost));
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  TensorView view_;
};

}  // namespace moba::cuda_tests
