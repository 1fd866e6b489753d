// score: every product of a query with a representative of its past, for diagnosis and tests: one warp for each row and
// head, float32 sums.
#include "cuda/cuda_check.h"
#include "cuda/device/element.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/instances.h"
#include "cuda/launch.h"
#include "cuda/sm90/sequence_lookup.cuh"

namespace moba::cuda {
namespace {

constexpr int kWarps = 8;

template <class T, int kDim>
__global__ void __launch_bounds__(32 * kWarps) score_kernel(ScoreProblem problem) {
  const std::int64_t task = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (task >= problem.rows * problem.heads) return;
  const std::int64_t row = task / problem.heads, head = task - row * problem.heads;
  const std::int64_t kv = head * problem.kv_heads / problem.heads;
  const int lane = threadIdx.x % 32;
  RowLookup lookup{problem.sequences, problem.sequence_count, problem.block_size};
  const std::int64_t past = lookup.own_block(row);

  constexpr int kPairs = kDim / 64;  // of each lane
  float2 query[kPairs];
  const T* q = static_cast<const T*>(problem.q) + row * problem.q_row_stride + head * problem.q_head_stride;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) query[i] = {to_float(q[2 * (32 * i + lane)]), to_float(q[2 * (32 * i + lane) + 1])};

  float* scores = problem.scores + row * problem.row_stride + head * problem.head_stride;
  for (std::int64_t block = 0; block < problem.columns; ++block) {
    float sum = minus_infinity();
    if (block < past) {
      const T* representative = static_cast<const T*>(problem.representatives) +
                                (lookup.first_block_row + block) * problem.r_row_stride + kv * problem.r_head_stride;
      sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        sum = fmaf(query[i].x, to_float(representative[2 * (32 * i + lane)]), sum);
        sum = fmaf(query[i].y, to_float(representative[2 * (32 * i + lane) + 1]), sum);
      }
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (lane == 0) scores[block] = isnan(sum) ? minus_infinity() : sum;
  }
}

}  // namespace

void launch_score(cudaStream_t stream, DType dtype, const ScoreProblem& problem) {
  const std::int64_t tasks = problem.rows * problem.heads;
  if (tasks == 0) return;
  dispatch_instance(dtype, problem.head_dim, [&]<class T, int kDim>() {
    score_kernel<T, kDim><<<static_cast<unsigned>((tasks + kWarps - 1) / kWarps), 32 * kWarps, 0, stream>>>(problem);
  });
  check_cuda(cudaGetLastError(), "score_kernel");
}

}  // namespace moba::cuda
