// merge: parts of attention over disjoint keys into one, in the order given; one warp for each row and head.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/cuda_check.h"
#include "cuda/device/softmax.cuh"
#include "cuda/launch.h"

namespace moba::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kEach = 8;  // columns of each lane: value dims up to 256

__device__ __forceinline__ float load(const PartView& part, std::int64_t at) {
  switch (part.dtype) {
    case DType::kBFloat16: return __bfloat162float(static_cast<const __nv_bfloat16*>(part.out)[at]);
    case DType::kFloat16: return __half2float(static_cast<const __half*>(part.out)[at]);
    default: return static_cast<const float*>(part.out)[at];
  }
}

__device__ __forceinline__ void store(const PartView& part, std::int64_t at, float value) {
  switch (part.dtype) {
    case DType::kBFloat16: static_cast<__nv_bfloat16*>(part.out)[at] = __float2bfloat16_rn(value); return;
    case DType::kFloat16: static_cast<__half*>(part.out)[at] = __float2half_rn(value); return;
    default: static_cast<float*>(part.out)[at] = value;
  }
}

__global__ void __launch_bounds__(32 * kWarps) merge_kernel(const __grid_constant__ MergeProblem problem) {
  const std::int64_t task = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (task >= problem.rows * problem.heads) return;
  const std::int64_t row = task / problem.heads, head = task - row * problem.heads;
  const int lane = threadIdx.x % 32;
  const auto lse_at = [&](const PartView& part) {
    return part.lse + head * part.lse_head_stride + row * part.lse_row_stride;
  };
  float maximum = minus_infinity();
  for (int i = 0; i < problem.count; ++i) maximum = fmaxf(maximum, *lse_at(problem.parts[i]));
  const float shift = maximum == minus_infinity() ? 0.0f : maximum;
  float values[kEach] = {}, sum = 0.0f;
  for (int i = 0; i < problem.count; ++i) {
    const PartView& part = problem.parts[i];
    const float lse = *lse_at(part);
    if (lse == minus_infinity()) continue;  // an empty part has no say, whatever its values
    const float weight = expf(lse - shift);
    const std::int64_t base = row * part.row_stride + head * part.head_stride;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      if (32 * e + lane < problem.value_dim) values[e] = fmaf(weight, load(part, base + 32 * e + lane), values[e]);
    }
    sum += weight;
  }
  __syncwarp();  // the result may be one of the parts: all of it has been read
  const PartView& result = problem.result;
  const std::int64_t base = row * result.row_stride + head * result.head_stride;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    if (32 * e + lane < problem.value_dim) store(result, base + 32 * e + lane, sum == 0.0f ? 0.0f : values[e] / sum);
  }
  if (lane == 0) *lse_at(result) = sum == 0.0f ? minus_infinity() : shift + logf(sum);
}

}  // namespace

void launch_merge(cudaStream_t stream, const MergeProblem& problem) {
  const std::int64_t tasks = problem.rows * problem.heads;
  if (tasks == 0) return;
  merge_kernel<<<static_cast<unsigned>((tasks + kWarps - 1) / kWarps), 32 * kWarps, 0, stream>>>(problem);
  check_cuda(cudaGetLastError(), "merge_kernel");
}

}  // namespace moba::cuda
