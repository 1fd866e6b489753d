#include "core.h"

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>

#include "cuda_device.h"
#include "moba/error.h"
#include "native.h"
#include "workspace.h"

namespace moba::torch_ops {
namespace {

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble: return DType::kFloat64;
    case at::kFloat: return DType::kFloat32;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kHalf: return DType::kFloat16;
    case at::kInt: return DType::kInt32;
    case at::kLong: return DType::kInt64;
    default:
      throw Error(ErrorCode::kInvalidArgument, std::string("a tensor has dtype ") +
                                                   c10::toString(tensor.scalar_type()) +
                                                   "; it must be float32, bfloat16, float16, float64, int32 or int64. "
                                                   "Convert it.");
  }
}

// Whether every row starts on 16 bytes, as copies of the GPU want it.
bool has_aligned_rows(const at::Tensor& tensor) {
  constexpr std::int64_t kBytes = 16;
  for (std::int64_t axis = 0; axis + 1 < tensor.dim(); ++axis) {
    if (tensor.stride(axis) * tensor.element_size() % kBytes != 0) return false;
  }
  return reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % kBytes == 0;
}

}  // namespace

TensorView view_of(const at::Tensor& tensor) {
  TensorView view;
  if (!tensor.defined()) return view;
  view.data = const_cast<void*>(tensor.const_data_ptr());
  view.dtype = dtype_of(tensor);
  if (tensor.is_cuda()) view.device = {DeviceKind::kCuda, tensor.device().index()};
  view.rank = static_cast<int>(tensor.dim());
  for (std::int64_t axis = 0; axis < tensor.dim(); ++axis) {
    view.shape[static_cast<std::size_t>(axis)] = tensor.size(axis);
    view.stride[static_cast<std::size_t>(axis)] = tensor.stride(axis);
  }
  return view;
}

at::Tensor last_axis_contiguous(const at::Tensor& tensor) {
  if (tensor.stride(-1) != 1) return tensor.contiguous();
  return tensor.is_cpu() || has_aligned_rows(tensor) ? tensor : tensor.clone(at::MemoryFormat::Contiguous);
}

PackedBatch view_of(const SequenceBatch& batch) {
  return {view_of(batch.cu_seqlens_q), view_of(batch.cu_seqlens_k), batch.max_seqlen_q, batch.max_seqlen_k};
}

void TorchContext::parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) {
  if (count <= 0) return;
  const std::int64_t units = (count + grain - 1) / grain;
  const std::int64_t lanes = std::min<std::int64_t>(units, num_threads());
  if (lanes <= 1) return task(0, count);
  // Lanes fetch pieces until none is left: causal work is uneven, and equal shares would leave the first lane idle.
  constexpr std::int64_t kPiecesPerLane = 16;
  const std::int64_t piece = std::max<std::int64_t>(1, units / (lanes * kPiecesPerLane)) * grain;
  std::atomic<std::int64_t> next{0};
  at::parallel_for(0, lanes, 1, [&](std::int64_t, std::int64_t) {
    for (std::int64_t begin = next.fetch_add(piece); begin < count; begin = next.fetch_add(piece)) {
      task(begin, std::min(begin + piece, count));
    }
  });
}

int TorchContext::num_threads() const {
  return at::in_parallel_region() ? 1 : at::get_num_threads();
}

void* TorchContext::allocate(std::size_t bytes) {
  try {
    return c10::GetCPUAllocator()->raw_allocate(std::max<std::size_t>(bytes, 1));
  } catch (const c10::Error&) {
    return nullptr;  // the core reports it as kWorkspace
  }
}

void TorchContext::release(void* pointer) noexcept {
  c10::GetCPUAllocator()->raw_deallocate(pointer);
}

std::int64_t TorchContext::workspace_limit() const {
  return torch_ops::workspace_limit();
}

CudaContext::CudaContext(int device) : stream_(current_stream(device)) {}

void* CudaContext::allocate(std::size_t bytes) {
  try {
    return c10::GetAllocator(c10::kCUDA)->raw_allocate(std::max<std::size_t>(bytes, 1));
  } catch (const c10::Error&) {
    return nullptr;  // the core reports it as kWorkspace
  }
}

void CudaContext::release(void* pointer) noexcept {
  c10::GetAllocator(c10::kCUDA)->raw_deallocate(pointer);
}

const Backend& cpu_backend_for(const at::Tensor& q) {
  return q.scalar_type() == at::kDouble ? reference_backend() : cpu_backend();
}

Engine::Engine(const at::Tensor& q) {
  if (q.is_cuda()) {
    context_ = std::make_unique<CudaContext>(q.device().index());
    backend_ = native_backend();
  } else {
    context_ = std::make_unique<TorchContext>();
    backend_ = &cpu_backend_for(q);
  }
}

}  // namespace moba::torch_ops
