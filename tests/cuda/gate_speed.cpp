// Times the gate's stages on the device and prints them beside their floors: cuda_gate_speed [name of a row]…, all rows
// without a name.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "cuda/bench_rows.h"
#include "cuda/device.h"
#include "cuda/gate.h"
#include "cuda/inverse.h"

namespace moba::test {
namespace {

// What one H100 or H200 reaches on dense products and copies: the ceilings of the floors.
constexpr double kFlops = 680e12, kBytes = 4.25e12;

/// Milliseconds of a replay of the work as a graph: without the host's share, and proof that it can be captured.
double median_ms(const DeviceContext& context, const std::function<void()>& work) {
  constexpr int kWarm = 2, kRuns = 11;
  const cudaStream_t stream = context.cuda_stream();
  work();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  work();
  must(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  must(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");
  cudaEvent_t begin = nullptr, end = nullptr;
  must(cudaEventCreate(&begin), "cudaEventCreate");
  must(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> times;
  for (int i = 0; i < kWarm + kRuns; ++i) {
    float ms = 0.0f;
    must(cudaEventRecord(begin, stream), "cudaEventRecord");
    must(cudaGraphLaunch(replay, stream), "cudaGraphLaunch");
    must(cudaEventRecord(end, stream), "cudaEventRecord");
    must(cudaEventSynchronize(end), "cudaEventSynchronize");
    must(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    if (i >= kWarm) times.push_back(ms);
  }
  must(cudaGraphExecDestroy(replay), "cudaGraphExecDestroy");
  must(cudaGraphDestroy(graph), "cudaGraphDestroy");
  std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
  return static_cast<double>(times[kRuns / 2]);
}

void fill_random(void* device, std::int64_t count) {
  // Normal numbers repeated with a long odd period: cheap, and no two blocks alike.
  static const std::vector<std::uint16_t> kNumbers = [] {
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    std::vector<std::uint16_t> numbers((1 << 22) + 77);
    for (std::uint16_t& x : numbers) {
      const float value = normal(random);
      std::uint32_t bits;
      std::memcpy(&bits, &value, 4);
      x = static_cast<std::uint16_t>(bits >> 16);
    }
    return numbers;
  }();
  const std::int64_t size = static_cast<std::int64_t>(kNumbers.size());
  for (std::int64_t at = 0; at < count; at += size) {
    must(cudaMemcpy(static_cast<std::uint16_t*>(device) + at, kNumbers.data(),
                    static_cast<std::size_t>(std::min(size, count - at)) * 2, cudaMemcpyHostToDevice),
         "copy");
  }
}

void report(const char* stage, double ms, double flops, double bytes) {
  const double floor_ms = 1e3 * std::max(flops / kFlops, bytes / kBytes);
  std::printf(" %s %.3f ms (%.0f TF %.2f TB/s x%.1f)", stage, ms, flops / ms * 1e-9, bytes / ms * 1e-9, ms / floor_ms);
}

constexpr std::int64_t kK = 1024;
constexpr BenchRow kGateRows[] = {
    {"8K 512,3", 8 * kK, 16, 16, 128, 512, 3},
    {"32K 512,3", 32 * kK, 16, 16, 128, 512, 3},
    {"32K 128,8", 32 * kK, 16, 16, 128, 128, 8},
    {"128K 512,3", 128 * kK, 16, 16, 128, 512, 3},
    {"128K 128,8", 128 * kK, 16, 16, 128, 128, 8},
    {"128K 4096,12", 128 * kK, 16, 16, 128, 4096, 12},
    {"128K 32/8 128,8", 128 * kK, 32, 8, 128, 128, 8},
    {"64K d64 64,8", 64 * kK, 4, 4, 64, 64, 8},
    {"128K 128,8 first", 128 * kK, 16, 16, 128, 128, 8, Choice::kFirst},
    {"512K 128,8", 512 * kK, 16, 16, 128, 128, 8},
    {"1M 4096,12", 1024 * kK, 16, 16, 128, 4096, 12},
};

void time_row(const BenchRow& row) {
  const auto [name, n, heads, kv_heads, dim, block_size, top_k, choice, dtype] = row;
  const bool skewed = choice == Choice::kFirst;
  const std::int64_t budget = top_k - 1, rows = block_rows(n, 1, block_size);
  DeviceContext context;
  context.poisons = false;
  std::uint16_t *q = nullptr, *k = nullptr, *representatives = nullptr;
  std::int32_t *lists = nullptr, *cu = nullptr;
  must(cudaMalloc(reinterpret_cast<void**>(&q), static_cast<std::size_t>(n * heads * dim) * 2), "malloc");
  must(cudaMalloc(reinterpret_cast<void**>(&k), static_cast<std::size_t>(n * kv_heads * dim) * 2), "malloc");
  must(cudaMalloc(reinterpret_cast<void**>(&representatives), static_cast<std::size_t>(rows * kv_heads * dim) * 2),
       "malloc");
  must(cudaMalloc(reinterpret_cast<void**>(&lists), static_cast<std::size_t>(n * heads * budget) * 4), "malloc");
  must(cudaMalloc(reinterpret_cast<void**>(&cu), 8), "malloc");
  const std::int32_t offsets[2] = {0, static_cast<std::int32_t>(n)};
  must(cudaMemcpy(cu, offsets, 8, cudaMemcpyHostToDevice), "copy");
  must(cudaMemset(representatives, 0, static_cast<std::size_t>(rows * kv_heads * dim) * 2), "memset");
  fill_random(q, n * heads * dim);
  fill_random(k, n * kv_heads * dim);
  const TensorView q_view(q, DType::kBFloat16, {n, heads, dim}), k_view(k, DType::kBFloat16, {n, kv_heads, dim}),
      r_view(representatives, DType::kBFloat16, {rows, kv_heads, dim}),
      list_view(lists, DType::kInt32, {n, heads, budget});
  const PackedBatch batch{ConstTensorView(cu, DType::kInt32, {2}), ConstTensorView(cu, DType::kInt32, {2}), n, n};
  Selection selection;
  selection.kind = SelectionKind::kList;
  selection.block_size = block_size;
  selection.blocks = list_view;

  double pairs = 0.0, entries = 0.0;  // (row, past block) and (row, chosen block), one head
  for (std::int64_t row = 0; row < n; ++row) {
    pairs += static_cast<double>(row / block_size);
    entries += static_cast<double>(std::min(budget, row / block_size));
  }
  std::printf("%ldK H%ld/%ld d%ld B%ld k%ld%s:", n / 1024, heads, kv_heads, dim, block_size, top_k,
              skewed ? " skew" : "");
  const double h = static_cast<double>(heads), d = static_cast<double>(dim);
  const double k_bytes = static_cast<double>(n * kv_heads * dim) * 2.0, q_bytes = static_cast<double>(n) * h * d * 2.0;
  const double list_bytes = static_cast<double>(n * heads * budget) * 4.0;
  report("pool", median_ms(context, [&] { cuda::pool(context, {k_view, batch, block_size, r_view}); }), 0.0, k_bytes);
  report("select",
         median_ms(context,
                   [&] {
                     cuda::select(context, {q_view, r_view, batch, selection});
                   }),
         2.0 * d * h * pairs, q_bytes + list_bytes);
  if (skewed) must(cudaMemset(lists, 0xff, static_cast<std::size_t>(n * heads * budget) * 4), "memset");
  if (skewed) {
    must(cudaMemset2D(lists, static_cast<std::size_t>(budget) * 4, 0, 4, static_cast<std::size_t>(n * heads)),
         "memset");
    must(cudaMemset(lists, 0xff, static_cast<std::size_t>(block_size * heads * budget) * 4), "memset");
    entries = static_cast<double>(n - block_size);
  }
  const double map_ms = median_ms(context, [&] { const cuda::BlockMap map(context, batch, n, n, block_size); });
  const cuda::BlockMap map(context, batch, n, n, block_size);
  cuda::BlockInverse inverse(context, map, selection, {0, n, 0, heads}, 1024);
  report("invert",
         median_ms(context,
                   [&] {
                     inverse.build({0, n, 0, heads});
                   }),
         0.0, 2.0 * list_bytes + 4.0 * h * entries);
  const double chain_ms = median_ms(context, [&] {
    cuda::pool(context, {k_view, batch, block_size, r_view});
    cuda::select(context, {q_view, r_view, batch, selection});
    const cuda::BlockMap chain_map(context, batch, n, n, block_size);
    cuda::BlockInverse chain(context, chain_map, selection, {0, n, 0, heads}, 1024);
    chain.build({0, n, 0, heads});
  });
  std::printf(" map %.3f, all in one graph %.3f\n", map_ms, chain_ms);
  std::fflush(stdout);
  must(cudaDeviceSynchronize(), "end of case");
  for (void* pointer : {static_cast<void*>(q), static_cast<void*>(k), static_cast<void*>(representatives),
                        static_cast<void*>(lists), static_cast<void*>(cu)}) {
    cudaFree(pointer);
  }
}

}  // namespace
}  // namespace moba::test

int main(int argc, char** argv) {
  return moba::test::time_rows(argc, argv, moba::test::kGateRows, moba::test::time_row);
}
