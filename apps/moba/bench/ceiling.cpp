#include "bench/ceiling.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include "bench/attend_problem.h"
#include "lm/util/device.h"

namespace moba::app {
namespace {

template <class Work>
double best_seconds(int repeats, const Work& work) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto started = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
  }
  return best;
}

Ceiling measure_gpu_ceiling(const char* dtype, torch::Device device) {
  constexpr std::int64_t kSide = 8192, kBytes = std::int64_t{1} << 30;
  constexpr int kCalls = 10;  // of one timing, so that their launches cost nothing
  const torch::Tensor a = torch::randn({kSide, kSide}, device).to(dtype_of(dtype)), b = torch::randn_like(a);
  torch::Tensor product = torch::empty_like(a);
  const torch::Tensor from = torch::ones({kBytes}, torch::TensorOptions(torch::kUInt8).device(device));
  torch::Tensor to = torch::zeros_like(from);
  const auto rate = [&](double work, const auto& call) {
    call();
    lm::synchronize(device);
    return work * kCalls / best_seconds(5, [&] {
             for (int i = 0; i < kCalls; ++i) call();
             lm::synchronize(device);
           });
  };
  return {rate(2e-9 * kSide * kSide * kSide, [&] { torch::matmul_out(product, a, b); }),
          rate(2e-9 * kBytes, [&] { to.copy_(from); })};
}

}  // namespace

long long last_level_cache() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  if (const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE); bytes > 0) return bytes;
#endif
  return 32LL << 20;
}

Ceiling measure_ceiling(const char* dtype, torch::Device device) {
  const torch::NoGradGuard no_gradients;
  if (device.is_cuda()) return measure_gpu_ceiling(dtype, device);
  constexpr std::int64_t kSide = 2048;
  const torch::Tensor a = torch::randn({kSide, kSide}).to(dtype_of(dtype)), b = torch::randn_like(a);
  Ceiling ceiling;
  torch::matmul(a, b);
  ceiling.gemm_gflops = 2e-9 * kSide * kSide * kSide / best_seconds(5, [&] { torch::matmul(a, b); });

  // Sums of whole cache lines; eight times the last-level cache, so that nothing is found there again.
  const torch::Tensor memory = torch::ones({8 * last_level_cache() / 8}, torch::kInt64);
  const std::int64_t* words = memory.const_data_ptr<std::int64_t>();
  std::atomic<std::int64_t> total{0};
  const double seconds = best_seconds(5, [&] {
    at::parallel_for(0, memory.numel() / 8, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
      std::int64_t sum[8] = {};
      for (std::int64_t line = begin; line < end; ++line) {
        for (std::int64_t i = 0; i < 8; ++i) sum[i] += words[line * 8 + i];
      }
      total += sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
    });
  });
  ceiling.read_gbs = 8e-9 * static_cast<double>(memory.numel()) / seconds;
  return ceiling;
}

}  // namespace moba::app
