// pool: the mean key of each block, with the bits of src/block_mean.h: a float32 sum in token order, one division, one
// rounding. The order leaves one chain of sums a column, so copies run ahead through a ring in shared memory: as many
// bytes are under way as the memory needs, whatever the block size.
#include <algorithm>

#include "cuda/dependent_launch.h"
#include "cuda/device/copy.cuh"
#include "cuda/device/element.cuh"
#include "cuda/instances.h"
#include "cuda/launch.h"
#include "cuda/sm90/few_sequences.cuh"

namespace moba::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTokens = 32;  // of one stage
constexpr int kStages = 4;

template <class T>
__device__ __forceinline__ T rounded(float x);
template <>
__device__ __forceinline__ __nv_bfloat16 rounded<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half rounded<__half>(float x) {
  return __float2half_rn(x);
}

/// A block of threads for each (block row, key/value head).
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads) pool_kernel(PoolProblem problem) {
  __shared__ alignas(16) T tile[kStages][kTokens][kDim];
  wait_for_launches_before();
  const std::int64_t task = blockIdx.x;
  const std::int64_t row = task / problem.kv_heads, head = task - row * problem.kv_heads;
  const BlockSpan block = problem.batch.block_table == nullptr
                              ? block_of_few(problem.batch, row, task == 0 && threadIdx.x < 32)
                              : problem.batch.block_table[row];
  if (block.keys == 0) return;  // rows that no block owns stay as they are
  const T* keys =
      static_cast<const T*>(problem.k) + block.first_key * problem.k_row_stride + head * problem.k_head_stride;

  constexpr int kChunks = kDim / 8;  // 16-byte pieces of a key
  const int chunk = threadIdx.x % kChunks;
  const auto fetch = [&](int stage, int first) {
#pragma unroll
    for (int token = threadIdx.x / kChunks; token < kTokens; token += kThreads / kChunks) {
      if (first + token < block.keys) {
        copy_16_async(shared_address(&tile[stage][token][chunk * 8]),
                      keys + (first + token) * problem.k_row_stride + chunk * 8);
      }
    }
    copy_async_commit();
  };

#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage, stage * kTokens);
  float low = 0.0f, high = 0.0f;  // columns 2 * threadIdx.x and the next
  int stage = 0;
  for (int first = 0; first < block.keys; first += kTokens) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // this stage has come for all, and the one before it has been summed by all
    fetch((stage + kStages - 1) % kStages, first + (kStages - 1) * kTokens);
    if (threadIdx.x < kDim / 2) {
      const int tokens = min(kTokens, block.keys - first);
      const std::uint32_t* column = reinterpret_cast<const std::uint32_t*>(&tile[stage][0][2 * threadIdx.x]);
      if (tokens == kTokens) {
#pragma unroll
        for (int token = 0; token < kTokens; ++token) {
          const float2 pair = unpack<T>(column[token * (kDim / 2)]);
          low += pair.x;
          high += pair.y;
        }
      } else {
        for (int token = 0; token < tokens; ++token) {
          const float2 pair = unpack<T>(column[token * (kDim / 2)]);
          low += pair.x;
          high += pair.y;
        }
      }
    }
    stage = (stage + 1) % kStages;
  }
  if (threadIdx.x < kDim / 2) {
    T* mean = static_cast<T*>(problem.representatives) + row * problem.row_stride + head * problem.head_stride +
              2 * threadIdx.x;
    const float count = static_cast<float>(block.keys);
    mean[0] = rounded<T>(low / count);
    mean[1] = rounded<T>(high / count);
  }
}

}  // namespace

void launch_pool(cudaStream_t stream, DType dtype, const PoolProblem& problem) {
  const std::int64_t tasks = problem.block_rows * problem.kv_heads;
  if (tasks == 0) return;
  dispatch_instance(dtype, problem.head_dim, [&]<class T, int kDim>() {
    launch_dependent(pool_kernel<T, kDim>, "pool_kernel", static_cast<unsigned>(tasks), kThreads, 0, stream, problem);
  });
}

}  // namespace moba::cuda
