// Times the CPU backend alone, without torch: one JSON line a case. attend_cpu.sh runs it beside torch's dense
// attention.
//
//   attend_cpu THREADS KIND PASS N HEADS KV_HEADS HEAD_DIM BLOCK_SIZE TOP_K [REPEATS [CACHES]]
//   KIND: full | moba
//   PASS: fwd | bwd | select (pooling included) | pool | attend, or several of them with commas between
//         decode: one query row, N keys; 64 queries and CACHES caches in turn
//         read: all keys and values of the CACHES caches once, for the bandwidth of memory
//
// Inputs are bfloat16. A forward result is compared with the definition on one row before it is timed. scratch_mb is
// the most that the calls held at one time beside their arguments. MOBA_SIMD_LEVEL limits the instructions.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "moba/cpu_info.h"
#include "thread_context.h"

namespace {

using moba::ConstTensorView;
using moba::DType;
using moba::TensorView;

std::vector<std::uint16_t> random_bfloat16(std::int64_t count, unsigned seed) {
  constexpr std::size_t kPeriod = 1000003;  // a prime: what repeats does so elsewhere in a row
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = i < kPeriod ? static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(normal(random)) >> 16)
                            : values[i - kPeriod];
  }
  return values;
}

float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// What one decoder holds of its past.
struct Cache {
  std::vector<std::uint16_t> k, v, representatives;
};

/// Adds up the words of the caches, so that each is read.
std::uint64_t read_all(moba::Context& context, const std::vector<Cache>& caches) {
  constexpr std::int64_t kWords = 1 << 16;  // of a task: 512 KiB
  std::atomic<std::uint64_t> total = 0;
  for (const Cache& cache : caches) {
    for (const std::vector<std::uint16_t>* tensor : {&cache.k, &cache.v}) {
      const auto* words = reinterpret_cast<const std::uint64_t*>(tensor->data());
      const std::int64_t count = static_cast<std::int64_t>(tensor->size() / 4), tasks = (count + kWords - 1) / kWords;
      context.parallel_for(tasks, 1, [&](std::int64_t begin, std::int64_t end) {
        std::uint64_t sum = 0;
        for (std::int64_t i = begin * kWords; i < std::min(count, end * kWords); ++i) sum += words[i];
        total += sum;
      });
    }
  }
  return total;
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
    std::fprintf(stderr,
                 "usage: attend_cpu THREADS KIND PASS N HEADS KV_HEADS HEAD_DIM BLOCK_SIZE TOP_K [REPEATS [CACHES]]\n");
    return 2;
  }
  const auto number = [&](int i) { return std::atoll(argv[i]); };
  const char* level = std::getenv("MOBA_SIMD_LEVEL");
  if (level != nullptr && !moba::limit_simd_level(level)) {
    std::fprintf(stderr, "attend_cpu: MOBA_SIMD_LEVEL is %s, which this build has not\n", level);
    return 2;
  }
  moba::AttentionOptions options;
  options.kind = moba::kind_from_name(argv[2]);
  const std::string pass = argv[3];
  const std::int64_t n = number(4), heads = number(5), kv_heads = number(6), dim = number(7);
  options.block_size = number(8);
  options.top_k = number(9);
  const int repeats = argc > 10 ? static_cast<int>(number(10)) : 3;
  const std::size_t cache_count = argc > 11 ? static_cast<std::size_t>(number(11)) : 1;
  constexpr std::int64_t kQueries = 64;  // of decode: other queries want other blocks
  const bool decode = pass == "decode";
  ThreadContext context(static_cast<int>(number(1)), decode ? 1 << 20 : 1 << 10);
  const std::int64_t rows = decode || pass == "read" ? 1 : n, block_rows = moba::block_rows(n, 1, options.block_size);

  std::vector<std::uint16_t> q = random_bfloat16((decode ? kQueries : rows) * heads * dim, 1);
  std::vector<Cache> caches;
  caches.reserve(cache_count);
  caches.push_back({random_bfloat16(n * kv_heads * dim, 2), random_bfloat16(n * kv_heads * dim, 3),
                    std::vector<std::uint16_t>(static_cast<std::size_t>(block_rows * kv_heads * dim))});
  std::vector<std::uint16_t>&k = caches[0].k, &v = caches[0].v;
  std::vector<std::uint16_t> dout = random_bfloat16(rows * heads * dim, 4);
  std::vector<std::uint16_t> out(dout.size()), dq(dout.size()), dk(k.size()), dv(v.size());
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
  const TensorView reps(caches[0].representatives.data(), DType::kBFloat16, {block_rows, kv_heads, dim});
  const auto pool = [&] { moba::pool(context, moba::cpu_backend(), {k_view, batch, options.block_size, reps}); };
  pool();
  const auto choose = [&] {
    moba::select(context, moba::cpu_backend(), options, q_view, k_view,
                 decode ? ConstTensorView(reps) : ConstTensorView(), batch, selection);
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

  std::istringstream names(pass);
  for (std::string name; std::getline(names, name, ',');) {
    Milliseconds ms{};
    if (name == "bwd") {
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
    } else if (name == "select") {
      ms = time_of(repeats, choose);
    } else if (name == "pool") {
      ms = time_of(repeats, pool);
    } else if (name == "attend") {
      ms = time_of(repeats, attend);
    } else if (decode || name == "read") {
      while (caches.size() < cache_count) caches.push_back(caches[0]);
      std::int64_t turn = 0;
      const auto decode_one = [&] {
        const Cache& cache = caches[static_cast<std::size_t>(turn) % caches.size()];
        const ConstTensorView query(q.data() + turn++ % kQueries * heads * dim, DType::kBFloat16, {1, heads, dim});
        const ConstTensorView keys(cache.k.data(), DType::kBFloat16, {n, kv_heads, dim});
        const ConstTensorView values(cache.v.data(), DType::kBFloat16, {n, kv_heads, dim});
        const ConstTensorView means(cache.representatives.data(), DType::kBFloat16, {block_rows, kv_heads, dim});
        moba::select(context, moba::cpu_backend(), options, query, keys, means, batch, selection);
        moba::attend(context, moba::cpu_backend(), {query, keys, values, batch, selection, 0.0, {out_view, lse_view}});
      };
      volatile std::uint64_t sum = 0;  // so that it is wanted
      ms = decode ? time_of(repeats, decode_one) : time_of(repeats, [&] { sum = read_all(context, caches); });
    } else {
      ms = time_of(repeats, forward);
    }
    std::printf(
        "{\"pass\": \"%s\", \"kind\": \"%s\", \"n\": %lld, \"heads\": %lld, \"kv_heads\": %lld, \"head_dim\": %lld, "
        "\"block_size\": %lld, \"top_k\": %lld, \"ms\": %.3f, \"cpu_ms\": %.3f, \"scratch_mb\": %.2f}\n",
        name.c_str(), argv[2], static_cast<long long>(n), static_cast<long long>(heads),
        static_cast<long long>(kv_heads), static_cast<long long>(dim), static_cast<long long>(options.block_size),
        static_cast<long long>(options.top_k), ms.wall, ms.processor, static_cast<double>(context.peak()) * 0x1p-20);
  }
  return 0;
}
