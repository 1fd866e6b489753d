// Times decode steps over a cache in pages, as replays of a graph of many steps: microseconds of a step, its bytes by
// the time, and the share of the speed of a copy in the same run. Results are checked by cuda_tests.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/cuda_check.h"
#include "cuda/decode.h"

namespace moba::decode_bench {
namespace {

using cuda::check_cuda;

__global__ void fill_normal(__nv_bfloat16* to, std::int64_t count, std::uint64_t seed, float deviation) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * blockDim.x) {
    std::uint64_t x = (static_cast<std::uint64_t>(i) + seed) * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    const float a = (static_cast<float>(x >> 40) + 0.5f) / 16777216.0f;
    const float b = static_cast<float>(x & 0xffffff) / 16777216.0f;
    to[i] = __float2bfloat16(deviation * sqrtf(-2.0f * logf(a)) * cospif(2.0f * b));
  }
}

struct Memory {
  void* data = nullptr;
  explicit Memory(std::int64_t bytes) { check_cuda(cudaMalloc(&data, static_cast<std::size_t>(bytes)), "cudaMalloc"); }
  ~Memory() { cudaFree(data); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

struct Row {
  const char* name;
  std::int64_t tokens, batch, heads, kv_heads, dim, block_size, top_k, page_size;
  bool per_head;
};

constexpr std::int64_t k = 1024;
constexpr Row kRows[] = {
    {"128K 32/8 b1", 128 * k, 1, 32, 8, 128, 128, 8, 64, true},
    {"128K 32/8 b1 group", 128 * k, 1, 32, 8, 128, 128, 8, 64, false},
    {"128K 32/8 b4", 128 * k, 4, 32, 8, 128, 128, 8, 64, true},
    {"128K 32/8 b16", 128 * k, 16, 32, 8, 128, 128, 8, 64, true},
    {"128K 32/8 b16 group", 128 * k, 16, 32, 8, 128, 128, 8, 64, false},
    {"128K 32/8 b16 page16", 128 * k, 16, 32, 8, 128, 128, 8, 16, true},
    {"128K 32/8 b64", 128 * k, 64, 32, 8, 128, 128, 8, 64, true},
    {"32K 32/8 b64", 32 * k, 64, 32, 8, 128, 128, 8, 64, true},
    {"8K 32/8 b1", 8 * k, 1, 32, 8, 128, 128, 8, 64, true},
    {"32K 16/16 b1 512,3", 32 * k, 1, 16, 16, 128, 512, 3, 64, true},
    {"32K 16/16 b16 512,3", 32 * k, 16, 16, 16, 128, 512, 3, 64, true},
    {"128K 16/1 b1", 128 * k, 1, 16, 1, 128, 128, 8, 64, true},
    {"128K 16/1 b64", 128 * k, 64, 16, 1, 128, 128, 8, 64, true},
    {"64K 4/4 d64 64,8 b1", 64 * k, 1, 4, 4, 64, 64, 8, 64, true},
    {"64K 4/4 d64 64,8 b64", 64 * k, 64, 4, 4, 64, 64, 8, 64, true},
};

/// Microseconds of one of `calls` calls, which are replayed as one graph; the median of several replays.
double microseconds(cudaStream_t stream, int calls, const std::function<void(int)>& call) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  for (int i = 0; i < calls; ++i) call(i);
  check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  check_cuda(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  cudaEvent_t begin, end;
  cudaEventCreate(&begin), cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < 8; ++i) {
    cudaEventRecord(begin, stream);
    check_cuda(cudaGraphLaunch(exec, stream), "cudaGraphLaunch");
    cudaEventRecord(end, stream);
    check_cuda(cudaEventSynchronize(end), "cudaEventSynchronize");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i > 0) times.push_back(ms);
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  cudaGraphExecDestroy(exec), cudaGraphDestroy(graph);
  std::sort(times.begin(), times.end());
  return 1e3 * times[times.size() / 2] / calls;
}

double copy_bytes_per_second(cudaStream_t stream) {
  constexpr std::int64_t kBytes = std::int64_t{1} << 30;
  const Memory a(kBytes), b(kBytes);
  const double us = microseconds(stream, 4, [&](int) {
    check_cuda(cudaMemcpyAsync(b.data, a.data, kBytes, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
  });
  return 2e6 * static_cast<double>(kBytes) / us;
}

void time_row(cudaStream_t stream, const Row& row, double copy_speed) {
  // Several batches, together far more than the L2 cache: what one step reads, the one before must not have left there.
  const std::int64_t batches = std::max<std::int64_t>(1, 16 / row.batch), sequences = batches * row.batch;
  const std::int64_t width = row.tokens / row.page_size, pages = sequences * width;
  const std::int64_t key_count = pages * row.page_size * row.kv_heads * row.dim;
  const std::int64_t lists = row.per_head ? row.heads : row.kv_heads, budget = row.top_k - 1;
  const Memory keys(2 * key_count), values(2 * key_count), means(2 * pages * row.kv_heads * row.dim);
  const Memory q(2 * sequences * row.heads * row.dim), out(2 * sequences * row.heads * row.dim);
  const Memory lse(4 * sequences * row.heads), blocks(4 * sequences * lists * budget);
  const Memory tables(4 * pages), lengths(8 * sequences);
  fill_normal<<<2048, 256, 0, stream>>>(keys.as<__nv_bfloat16>(), key_count, 1, 1.0f);
  fill_normal<<<2048, 256, 0, stream>>>(values.as<__nv_bfloat16>(), key_count, 1ull << 40, 1.0f);
  fill_normal<<<2048, 256, 0, stream>>>(means.as<__nv_bfloat16>(), pages * row.kv_heads * row.dim, 1ull << 41, 0.1f);
  fill_normal<<<2048, 256, 0, stream>>>(q.as<__nv_bfloat16>(), sequences * row.heads * row.dim, 1ull << 42, 1.0f);
  std::vector<std::int32_t> order(static_cast<std::size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(7));
  check_cuda(cudaMemcpy(tables.data, order.data(), order.size() * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
  const std::vector<std::int64_t> all(static_cast<std::size_t>(sequences), row.tokens - 5);
  check_cuda(cudaMemcpy(lengths.data, all.data(), all.size() * 8, cudaMemcpyHostToDevice), "cudaMemcpy");

  cuda::PagedSequences paged;
  paged.tables = tables.as<std::int32_t>(), paged.table_stride = width;
  paged.lengths = lengths.as<std::int64_t>();
  paged.capacity = static_cast<std::int32_t>(row.tokens);
  paged.page_size = static_cast<std::int32_t>(row.page_size);
  paged.page_shift = __builtin_ctzll(static_cast<unsigned long long>(row.page_size));
  paged.pages = static_cast<std::int32_t>(pages);
  paged.count = static_cast<std::int32_t>(row.batch);
  const auto of_batch = [&](int i) {
    cuda::PagedSequences batch = paged;
    for (std::int64_t s = 0; s < row.batch; ++s)
      batch.sequence[s] = static_cast<std::int32_t>(i % batches * row.batch + s);
    return batch;
  };
  const auto problem_of = [&](int i) {
    cuda::DecodeProblem p;
    p.batch = of_batch(i);
    p.heads = static_cast<std::int32_t>(row.heads), p.kv_heads = static_cast<std::int32_t>(row.kv_heads);
    p.q = q.as<__nv_bfloat16>() + i % batches * row.batch * row.heads * row.dim;
    p.q_row_stride = p.out_row_stride = row.heads * row.dim, p.q_head_stride = p.out_head_stride = row.dim;
    p.k = keys.data, p.v = values.data;
    p.k_row_stride = p.v_row_stride = row.kv_heads * row.dim, p.k_head_stride = p.v_head_stride = row.dim;
    p.out = out.data, p.lse = lse.as<float>(), p.lse_head_stride = row.batch;
    p.softmax_scale = 1.0f / std::sqrt(static_cast<float>(row.dim));
    p.block_size = static_cast<std::int32_t>(row.block_size);
    p.representatives = means.data, p.r_row_stride = row.kv_heads * row.dim, p.r_head_stride = row.dim;
    p.blocks = blocks.as<std::int32_t>(), p.row_stride = lists * budget, p.list_stride = budget;
    p.lists = static_cast<std::int32_t>(lists), p.budget = static_cast<std::int32_t>(budget);
    return p;
  };
  const auto choose = [&](int i, int cluster) {
    cuda::DecodeProblem p = problem_of(i);
    p.cluster = cluster;
    cuda::launch_decode_choose(stream, DType::kBFloat16, row.dim, p);
  };
  const auto attend = [&](int i, int cluster, int warps, bool chooses) {
    cuda::DecodeProblem p = problem_of(i);
    p.cluster = cluster;
    p.warps = warps;
    cuda::launch_decode_attend(stream, DType::kBFloat16, row.dim, p, chooses);
  };

  // What a step reads: distinct blocks of each key/value head, as count_reads counts them.
  double read_blocks = 0.0;
  std::vector<std::int32_t> list(static_cast<std::size_t>(row.batch * lists * budget));
  for (int b = 0; b < batches; ++b) {
    choose(b, 1);
    check_cuda(cudaMemcpyAsync(list.data(), blocks.data, list.size() * 4, cudaMemcpyDeviceToHost, stream),
               "cudaMemcpy");
    check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    const std::size_t per_kv = list.size() / static_cast<std::size_t>(row.batch * row.kv_heads);
    for (std::size_t i = 0; i < list.size(); i += per_kv) {
      std::vector<std::int32_t> of(list.begin() + static_cast<long>(i), list.begin() + static_cast<long>(i + per_kv));
      std::sort(of.begin(), of.end());
      read_blocks += static_cast<double>(std::unique(of.begin(), of.end()) - of.begin()) + 0.96;
    }
  }
  read_blocks /= static_cast<double>(batches);
  const double key_bytes = read_blocks * static_cast<double>(row.block_size * row.dim * 4);
  const double mean_bytes =
      static_cast<double>(row.batch * (row.tokens / row.block_size - 1) * row.kv_heads * row.dim * 2);
  const int calls = static_cast<int>(batches) * 8;
  std::printf("%-22s %7.2f MB;", row.name, (key_bytes + mean_bytes) * 1e-6);
  double best = 1e9;
  for (const int warps : {4, 8}) {
    for (int cluster = 1; cluster <= cuda::kMostCluster; cluster *= 2) {
      if (cluster > 2 && row.batch >= 64) continue;
      const double whole = microseconds(stream, calls, [&](int i) { attend(i, cluster, warps, true); });
      const double apart = microseconds(stream, calls, [&](int i) { attend(i, cluster, warps, false); });
      best = std::min(best, whole);
      std::printf(" %dx%d %.1f(%.1f)", cluster, warps, whole, apart);
    }
  }
  const double alone = microseconds(stream, calls, [&](int i) { choose(i, row.batch >= 16 ? 2 : 8); });
  const double speed = (key_bytes + mean_bytes) / best * 1e6;
  std::printf(" choose %.1f | best %.2f us, %.0f GB/s, %.0f%% of copy\n", alone, best, speed * 1e-9,
              100 * speed / copy_speed);
  std::fflush(stdout);
}

}  // namespace
}  // namespace moba::decode_bench

int main() {
  using namespace moba::decode_bench;
  try {
    cudaStream_t stream;
    check_cuda(cudaStreamCreate(&stream), "cudaStreamCreate");
    const double copy_speed = copy_bytes_per_second(stream);
    cudaDeviceProp properties;
    check_cuda(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    std::printf("%s, copy %.0f GB/s\n", properties.name, copy_speed * 1e-9);
    for (const Row& row : kRows) time_row(stream, row, copy_speed);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return 0;
}
