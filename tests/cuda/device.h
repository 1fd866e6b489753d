// A context whose memory is the GPU's, and tensors that go there and back.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

#include "cases/problem.h"
#include "moba/moba.h"

namespace moba::test {

inline void must(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline Device gpu() {
  return {DeviceKind::kCuda, 0};
}

/// Scratch is poisoned: every byte 0xff, a NaN in all float types.
class DeviceContext final : public SerialContext {
 public:
  explicit DeviceContext(std::int64_t limit = std::int64_t{1536} << 20) : limit_(limit) {
    must(cudaStreamCreate(&stream_), "cudaStreamCreate");
    // Memory that is given back stays with the process: timings would count its mapping otherwise.
    cudaMemPool_t pool = nullptr;
    std::uint64_t threshold = ~std::uint64_t{0};
    must(cudaDeviceGetDefaultMemPool(&pool, 0), "cudaDeviceGetDefaultMemPool");
    must(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold), "cudaMemPoolSetAttribute");
    must(cudaMallocAsync(reinterpret_cast<void**>(&word_), sizeof(std::int32_t), stream_), "cudaMallocAsync");
    must(cudaMemsetAsync(word_, 0, sizeof(std::int32_t), stream_), "cudaMemsetAsync");
  }
  ~DeviceContext() override {
    cudaFreeAsync(word_, stream_);
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  void* allocate(std::size_t bytes) override {
    void* pointer = nullptr;
    const std::size_t size = bytes == 0 ? 1 : bytes;
    if (cudaMallocAsync(&pointer, size, stream_) != cudaSuccess) return nullptr;
    if (poisons) must(cudaMemsetAsync(pointer, 0xff, size, stream_), "cudaMemsetAsync");
    held_ += static_cast<std::int64_t>(size);
    most_ = std::max(most_, held_);
    sizes_[pointer] = static_cast<std::int64_t>(size);
    return pointer;
  }
  void release(void* pointer) noexcept override {
    held_ -= sizes_[pointer];
    cudaFreeAsync(pointer, stream_);
  }
  void* stream() const override { return stream_; }
  std::int64_t workspace_limit() const override { return limit_; }
  std::int32_t* error_word() const override { return word_; }

  std::int32_t error_bits() const {
    std::int32_t bits = 0;
    must(cudaMemcpyAsync(&bits, word_, sizeof(bits), cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
    must(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    return bits;
  }
  std::int64_t most_held() const { return most_; }
  cudaStream_t cuda_stream() const { return stream_; }

  bool poisons = true;

 private:
  std::int64_t limit_, held_ = 0, most_ = 0;
  std::map<void*, std::int64_t> sizes_;
  cudaStream_t stream_ = nullptr;
  std::int32_t* word_ = nullptr;
};

/// A copy of a contiguous host tensor in device memory.
class DeviceTensor {
 public:
  DeviceTensor() = default;
  DeviceTensor(DeviceContext& context, const cases::HostTensor& host) : context_(&context), view_(host.view()) {
    bytes_ = static_cast<std::size_t>(host.numel() * size_of(host.dtype()));
    void* data = nullptr;
    must(cudaMallocAsync(&data, bytes_ + 16, context.cuda_stream()), "cudaMallocAsync");
    must(cudaMemcpyAsync(data, view_.data, bytes_, cudaMemcpyHostToDevice, context.cuda_stream()), "cudaMemcpyAsync");
    must(cudaStreamSynchronize(context.cuda_stream()), "cudaStreamSynchronize");
    view_.data = data;
    view_.device = gpu();
  }
  DeviceTensor(const DeviceTensor&) = delete;
  DeviceTensor& operator=(const DeviceTensor&) = delete;
  ~DeviceTensor() {
    if (context_ != nullptr) cudaFreeAsync(view_.data, context_->cuda_stream());
  }
  TensorView view() const { return view_; }
  /// Back into a host tensor of the same shape and dtype.
  void read(const cases::HostTensor& host) const {
    must(cudaMemcpyAsync(host.view().data, view_.data, bytes_, cudaMemcpyDeviceToHost, context_->cuda_stream()),
         "cudaMemcpyAsync");
    must(cudaStreamSynchronize(context_->cuda_stream()), "cudaStreamSynchronize");
  }

 private:
  DeviceContext* context_ = nullptr;
  TensorView view_;
  std::size_t bytes_ = 0;
};

}  // namespace moba::test
