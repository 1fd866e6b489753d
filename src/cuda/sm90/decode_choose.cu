// The choice of a decode step as a launch of its own, for lists that more heads share than attend together.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/cuda_check.h"
#include "cuda/instances.h"
#include "cuda/sm90/decode_choice.cuh"

namespace moba::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads) decode_choose_kernel(const __grid_constant__ DecodeProblem problem) {
  extern __shared__ std::uint32_t keys[];  // [lists of the unit][kChunk]
  __shared__ Kept kept;
  const int row = blockIdx.z, rank = blockIdx.x, ranks = gridDim.x;
  const Unit unit = unit_of(problem, blockIdx.y);
  const PagedRows rows(problem.batch, row);
  const Candidates candidates(problem, rows.length);
  keep_best_of_share<T, kDim, kWarps>(problem, rows, unit, candidates, row, rank, ranks, kept, keys);
  // List l is finished by CTA l % ranks.
  for (int list = rank + (threadIdx.x >> 5) * ranks; list < unit.lists; list += ranks * kWarps) {
    std::int32_t* out = problem.blocks + row * problem.row_stride + (unit.first_list + list) * problem.list_stride;
    finish_list(candidates, problem.budget, kept, list, ranks,
                [&](int place, std::int32_t block) { out[place] = block; });
  }
  cluster_sync();  // nobody leaves while its shared memory is read
}

}  // namespace

int cluster_for(std::int64_t units, int multiprocessors, int resident) {
  int cluster = 1;
  while (cluster < kMostCluster && units * cluster < std::int64_t{multiprocessors} * resident) cluster *= 2;
  return cluster;
}

void launch_decode_choose(cudaStream_t stream, DType dtype, std::int64_t head_dim, const DecodeProblem& problem) {
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    const int group = problem.heads / problem.kv_heads;
    const bool per_head = problem.lists == problem.heads;
    const int units = per_head ? problem.kv_heads * ((group + kHeadTile - 1) / kHeadTile) : problem.lists;
    const int lists = per_head ? std::min(group, kHeadTile) : 1;
    const std::size_t bytes = static_cast<std::size_t>(lists) * kChunk * sizeof(std::uint32_t);
    const auto kernel = decode_choose_kernel<T, kDim>;
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
               "cudaFuncSetAttribute");
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(problem.cluster), static_cast<unsigned>(units),
                          static_cast<unsigned>(problem.batch.count));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(problem.cluster), 1, 1};
    config.attrs = &cluster;
    config.numAttrs = 1;
    check_cuda(cudaLaunchKernelEx(&config, kernel, problem), "decode_choose");
  });
}

}  // namespace moba::cuda
