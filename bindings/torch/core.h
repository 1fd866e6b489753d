// Between torch and the core: tensors as views, torch's threads and allocator as a Context.
#pragma once

#include <ATen/ATen.h>

#include <memory>

#include "moba/backend.h"
#include "moba/context.h"
#include "moba/tensor.h"
#include "moba_torch/attention.h"

namespace moba::torch_ops {

/// A view of a tensor's memory; the tensor must outlive it. An undefined tensor gives an absent view.
TensorView view_of(const at::Tensor& tensor);

/// The tensor itself if its last axis has stride 1 and, on CUDA, its rows start on 16 bytes; else a contiguous copy:
/// the core asks no more.
at::Tensor last_axis_contiguous(const at::Tensor& tensor);

/// `batch` must outlive the result.
PackedBatch view_of(const SequenceBatch& batch);

/// at::parallel_for, torch's CPU allocator, and the process's workspace limit (workspace.h).
class TorchContext final : public Context {
 public:
  void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) override;
  int num_threads() const override;
  void* allocate(std::size_t bytes) override;
  void release(void* pointer) noexcept override;
  std::int64_t workspace_limit() const override;
};

/// Device memory of torch's caching allocator on torch's current stream. Made and used on the device of the tensors.
class CudaContext final : public Context {
 public:
  explicit CudaContext(int device);
  void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) override {
    context_.parallel_for(count, grain, task);
  }
  int num_threads() const override { return context_.num_threads(); }
  void* allocate(std::size_t bytes) override;
  void release(void* pointer) noexcept override;
  void* stream() const override { return stream_; }
  std::int64_t workspace_limit() const override { return context_.workspace_limit(); }

 private:
  TorchContext context_;
  void* stream_;
};

/// The reference for float64, the SIMD backend for all else.
const Backend& cpu_backend_for(const at::Tensor& q);

/// The core's backend and its context for tensors like `q`. On CUDA the native kernels must be there (native.h).
class Engine {
 public:
  explicit Engine(const at::Tensor& q);
  Context& context() { return *context_; }
  const Backend& backend() const { return *backend_; }

 private:
  std::unique_ptr<Context> context_;
  const Backend* backend_;
};

}  // namespace moba::torch_ops
