// What the tests of the CUDA kernels share: device copies of host tensors, and a context whose scratch is poisoned.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <unordered_set>

#include "cases/problem.h"
#include "moba/moba.h"

namespace moba::test {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

/// Scratch on the device, full of 0xff bytes (NaN in every float, -1 in every integer) unless `poison` is off.
class DeviceContext : public Context {
 public:
  explicit DeviceContext(bool poison = true) : poison_(poison) {
    check(cudaMalloc(reinterpret_cast<void**>(&error_word_), sizeof(std::int32_t)), "cudaMalloc");
    check(cudaMemset(error_word_, 0, sizeof(std::int32_t)), "cudaMemset");
    cudaMemPool_t pool = nullptr;
    std::uint64_t keep = UINT64_MAX;
    check(cudaDeviceGetDefaultMemPool(&pool, 0), "cudaDeviceGetDefaultMemPool");
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "cudaMemPoolSetAttribute");
  }
  ~DeviceContext() override { cudaFree(error_word_); }
  DeviceContext(const DeviceContext&) = delete;
  DeviceContext& operator=(const DeviceContext&) = delete;

  void parallel_for(std::int64_t count, std::int64_t, RangeTask task) override {
    if (count > 0) task(0, count);
  }
  int num_threads() const override { return 1; }
  void* allocate(std::size_t bytes) override {
    void* pointer = nullptr;
    if (bytes == 0) bytes = 1;
    if (cudaMallocAsync(&pointer, bytes, nullptr) != cudaSuccess) return nullptr;
    if (poison_) check(cudaMemsetAsync(pointer, 0xff, bytes, nullptr), "cudaMemsetAsync");
    return pointer;
  }
  void release(void* pointer) noexcept override { cudaFreeAsync(pointer, nullptr); }
  std::int32_t* error_word() const override { return error_word_; }
  std::int32_t errors() const {
    std::int32_t bits = 0;
    check(cudaMemcpy(&bits, error_word_, sizeof(bits), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return bits;
  }

 private:
  bool poison_;
  std::int32_t* error_word_ = nullptr;
};

/// Device memory of the shape of a contiguous host tensor.
class DeviceTensor {
 public:
  explicit DeviceTensor(const cases::HostTensor& host) : view_(host.view()) {
    bytes_ = static_cast<std::size_t>(host.numel() * size_of(host.dtype()));
    check(cudaMalloc(&data_, bytes_ == 0 ? 1 : bytes_), "cudaMalloc");
    check(cudaMemcpy(data_, view_.data, bytes_, cudaMemcpyHostToDevice), "cudaMemcpy");
    view_.data = data_;
    view_.device = {DeviceKind::kCuda, 0};
  }
  ~DeviceTensor() { cudaFree(data_); }
  DeviceTensor(const DeviceTensor&) = delete;
  DeviceTensor& operator=(const DeviceTensor&) = delete;

  TensorView view() const { return view_; }
  /// Waits for the device and copies back into a host tensor of the same shape.
  void read(const cases::HostTensor& host) const {
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check(cudaMemcpy(host.view().data, data_, bytes_, cudaMemcpyDeviceToHost), "cudaMemcpy");
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  TensorView view_;
};

}  // namespace moba::test
