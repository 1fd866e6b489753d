// Times the CPU backend alone, without torch: one JSON line a case. attend_cpu.sh runs it beside torch's dense
// attention.
//
//   attend_cpu THREADS KIND PASS N HEADS KV_HEADS HEAD_DIM BLOCK_SIZE TOP_K [REPEATS]
//   KIND: full | moba     PASS: fwd | bwd | select (pooling included) | pool | attend | decode (one query row, N keys)
//
// Inputs are bfloat16. A forward result is compared with the reference on some rows before it is timed.
#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "moba/moba.h"

namespace {

using moba::ConstTensorView;
using moba::DType;
using moba::TensorView;

/// Threads made for each call, which costs some tens of microseconds; ranges are handed out as they are asked for.
class ThreadContext : public moba::SerialContext {
 public:
  explicit ThreadContext(int threads) : threads_(threads) {}
  int num_threads() const override { return threads_; }
  void parallel_for(std::int64_t count, std::int64_t grain, moba::RangeTask task) override {
    const std::int64_t share = (count + threads_ - 1) / threads_;
    const std::int64_t step = std::max(grain, (share + grain - 1) / grain * grain);
    std::vector<std::thread> threads;
    for (std::int64_t begin = step; begin < count; begin += step) {
      threads.emplace_back([=] { task(begin, std::min(count, begin + step)); });
    }
    if (count > 0) task(0, std::min(count, step));
    for (std::thread& thread : threads) thread.join();
  }

 private:
  int threads_;
};

std::vector<std::uint16_t> random_bfloat16(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
  for (std::uint16_t& value : values)
    value = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(normal(random)) >> 16);
  return values;
}

float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// Medians of wall time and of the processor time of all threads; the second is the one to read on a busy machine.
struct Milliseconds {
  double wall, processor;
};

template <class Body>
Milliseconds time_of(int repeats, Body&& body) {
  std::vector<double> wall, processor;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const std::clock_t processor_start = std::clock();
    body();
    processor.push_back(1e3 * static_cast<double>(std::clock() - processor_start) / CLOCKS_PER_SEC);
    wall.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(wall.begin(), wall.end());
  std::sort(processor.begin(), processor.end());
  return {wall[wall.size() / 2], processor[processor.size() / 2]};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 10) {
    std::fprintf(stderr, "usage: attend_cpu THREADS KIND PASS N HEADS KV_HEADS HEAD_DIM BLOCK_SIZE TOP_K [REPEATS]\n");
    return 2;
  }
  const auto number = [&](int i) { return std::atoll(argv[i]); };
  ThreadContext context(static_cast<int>(number(1)));
  moba::AttentionOptions options;
  options.kind = moba::kind_from_name(argv[2]);
  const std::string pass = argv[3];
  const std::int64_t n = number(4), heads = number(5), kv_heads = number(6), dim = number(7);
  options.block_size = number(8);
  options.top_k = number(9);
  const int repeats = argc > 10 ? static_cast<int>(number(10)) : 3;
  const std::int64_t rows = pass == "decode" ? 1 : n;

  std::vector<std::uint16_t> q = random_bfloat16(rows * heads * dim, 1), k = random_bfloat16(n * kv_heads * dim, 2);
  std::vector<std::uint16_t> v = random_bfloat16(n * kv_heads * dim, 3), dout = random_bfloat16(rows * heads * dim, 4);
  std::vector<std::uint16_t> out(q.size()), dq(q.size()), dk(k.size()), dv(v.size());
  std::vector<float> lse(static_cast<std::size_t>(rows * heads));
  const std::int64_t offsets_q[2] = {0, rows}, offsets_k[2] = {0, n};
  moba::PackedBatch batch{ConstTensorView(offsets_q, DType::kInt64, {2}),
                          ConstTensorView(offsets_k, DType::kInt64, {2}), rows, n};
  const ConstTensorView q_view(q.data(), DType::kBFloat16, {rows, heads, dim});
  const ConstTensorView k_view(k.data(), DType::kBFloat16, {n, kv_heads, dim});
  const ConstTensorView v_view(v.data(), DType::kBFloat16, {n, kv_heads, dim});
  const TensorView out_view(out.data(), DType::kBFloat16, {rows, heads, dim});
  const TensorView lse_view(lse.data(), DType::kFloat32, {heads, rows});

  moba::Selection selection = moba::plan_selection(options, rows, heads, kv_heads, n);
  std::vector<std::int32_t> list(
      selection.kind == moba::SelectionKind::kList ? static_cast<std::size_t>(selection.blocks.numel()) : 0);
  selection.blocks.data = list.data();
  const std::int64_t block_rows = moba::block_rows(n, 1, options.block_size);
  std::vector<std::uint16_t> representatives(static_cast<std::size_t>(block_rows * kv_heads * dim));
  const TensorView reps(representatives.data(), DType::kBFloat16, {block_rows, kv_heads, dim});
  const auto pool = [&] { moba::pool(context, moba::cpu_backend(), {k_view, batch, options.block_size, reps}); };
  pool();
  const auto choose = [&] {
    moba::select(context, moba::cpu_backend(), options, q_view, k_view,
                 pass == "decode" ? ConstTensorView(reps) : ConstTensorView(), batch, selection);
  };
  const moba::AttendArgs args{q_view, k_view, v_view, batch, selection, 0.0, {out_view, lse_view}};
  const auto attend = [&] { moba::attend(context, moba::cpu_backend(), args); };
  const auto forward = [&] {
    choose();
    attend();
  };

  forward();
  {  // the last row against the definition
    const std::int64_t row = rows - 1, head = heads - 1, kv_head = kv_heads - 1;
    std::vector<double> exact(static_cast<std::size_t>(dim), 0.0);
    double sum = 0.0;
    const std::int64_t own = (n - 1) / options.block_size;
    for (std::int64_t t = 0; t < n; ++t) {
      bool seen = selection.kind == moba::SelectionKind::kAll || t / options.block_size == own;
      for (std::int64_t s = 0; !seen && s < selection.budget(); ++s) {
        seen = list[static_cast<std::size_t>((row * heads + head) * selection.budget() + s)] == t / options.block_size;
      }
      if (!seen) continue;
      double score = 0.0;
      for (std::int64_t d = 0; d < dim; ++d) {
        score += static_cast<double>(bfloat16_to_float(q[static_cast<std::size_t>((row * heads + head) * dim + d)])) *
                 bfloat16_to_float(k[static_cast<std::size_t>((t * kv_heads + kv_head) * dim + d)]);
      }
      const double weight = std::exp(score / std::sqrt(static_cast<double>(dim)));
      sum += weight;
      for (std::int64_t d = 0; d < dim; ++d) {
        exact[static_cast<std::size_t>(d)] +=
            weight * bfloat16_to_float(v[static_cast<std::size_t>((t * kv_heads + kv_head) * dim + d)]);
      }
    }
    for (std::int64_t d = 0; d < dim; ++d) {
      const double got = bfloat16_to_float(out[static_cast<std::size_t>((row * heads + head) * dim + d)]);
      if (!(std::fabs(got - exact[static_cast<std::size_t>(d)] / sum) < 0.01)) {
        std::fprintf(stderr, "attend_cpu: wrong answer at column %lld: %g, expected %g\n", static_cast<long long>(d),
                     got, exact[static_cast<std::size_t>(d)] / sum);
        return 1;
      }
    }
  }

  Milliseconds ms{};
  if (pass == "bwd") {
    const moba::AttendBackwardArgs backward{q_view,
                                            k_view,
                                            v_view,
                                            batch,
                                            selection,
                                            0.0,
                                            out_view,
                                            lse_view,
                                            ConstTensorView(dout.data(), DType::kBFloat16, {rows, heads, dim}),
                                            {},
                                            TensorView(dq.data(), DType::kBFloat16, {rows, heads, dim}),
                                            TensorView(dk.data(), DType::kBFloat16, {n, kv_heads, dim}),
                                            TensorView(dv.data(), DType::kBFloat16, {n, kv_heads, dim})};
    ms = time_of(repeats, [&] { moba::attend_backward(context, moba::cpu_backend(), backward); });
  } else if (pass == "select") {
    ms = time_of(repeats, choose);
  } else if (pass == "pool") {
    ms = time_of(repeats, pool);
  } else if (pass == "attend") {
    ms = time_of(repeats, attend);
  } else {
    ms = time_of(repeats, forward);
  }
  std::printf(
      "{\"pass\": \"%s\", \"kind\": \"%s\", \"n\": %lld, \"heads\": %lld, \"kv_heads\": %lld, \"head_dim\": %lld, "
      "\"block_size\": %lld, \"top_k\": %lld, \"ms\": %.2f, \"cpu_ms\": %.2f}\n",
      argv[3], argv[2], static_cast<long long>(n), static_cast<long long>(heads), static_cast<long long>(kv_heads),
      static_cast<long long>(dim), static_cast<long long>(options.block_size), static_cast<long long>(options.top_k),
      ms.wall, ms.processor);
  return 0;
}
