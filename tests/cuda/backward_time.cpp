// Times attend_backward by stage. Not a test: prints ms, TFLOP/s, GB/s and the ratio to the roofline.
//   backward_time [N,H,HK,B,k,D[,random|block0|near]]...
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cuda/attend_backward.h"
#include "cuda/device_memory.h"
#include "cuda/sm90/backward.h"

using namespace moba;
using cuda_tests::must;

namespace {
struct Span {
  std::string name;
  cudaEvent_t begin, end;
};
std::vector<Span> spans;
template <class Launch>
void timed(const char* name, cudaStream_t stream, Launch&& launch) {
  Span span{name, {}, {}};
  must(cudaEventCreate(&span.begin));
  must(cudaEventCreate(&span.end));
  must(cudaEventRecord(span.begin, stream));
  launch();
  must(cudaEventRecord(span.end, stream));
  spans.push_back(span);
}
}  // namespace

// The linker puts these around the launchers (-Wl,--wrap).
namespace moba::cuda {
void real_products(const BackwardChunk&, DType, int, int, cudaStream_t) asm(
    "__real__ZN4moba4cuda24launch_backward_productsERKNS0_13BackwardChunkENS_5DTypeEiiP11CUstream_st");
void wrap_products(const BackwardChunk& c, DType t, int d, int p, cudaStream_t s) asm(
    "__wrap__ZN4moba4cuda24launch_backward_productsERKNS0_13BackwardChunkENS_5DTypeEiiP11CUstream_st");
void wrap_products(const BackwardChunk& c, DType t, int d, int p, cudaStream_t s) {
  timed("products", s, [&] { real_products(c, t, d, p, s); });
}
void real_partials(const BackwardChunk&, DType, int, cudaStream_t) asm(
    "__real__ZN4moba4cuda19launch_add_partialsERKNS0_13BackwardChunkENS_5DTypeEiP11CUstream_st");
void wrap_partials(const BackwardChunk& c, DType t, int d, cudaStream_t s) asm(
    "__wrap__ZN4moba4cuda19launch_add_partialsERKNS0_13BackwardChunkENS_5DTypeEiP11CUstream_st");
void wrap_partials(const BackwardChunk& c, DType t, int d, cudaStream_t s) {
  timed("add_dq", s, [&] { real_partials(c, t, d, s); });
}
void real_slabs(const BackwardChunk&, DType, int, cudaStream_t) asm(
    "__real__ZN4moba4cuda16launch_add_slabsERKNS0_13BackwardChunkENS_5DTypeEiP11CUstream_st");
void wrap_slabs(const BackwardChunk& c, DType t, int d, cudaStream_t s) asm(
    "__wrap__ZN4moba4cuda16launch_add_slabsERKNS0_13BackwardChunkENS_5DTypeEiP11CUstream_st");
void wrap_slabs(const BackwardChunk& c, DType t, int d, cudaStream_t s) {
  timed("add_slabs", s, [&] { real_slabs(c, t, d, s); });
}
void real_terms(const TermsInput&, DType, int, cudaStream_t) asm(
    "__real__ZN4moba4cuda16launch_row_termsERKNS0_10TermsInputENS_5DTypeEiP11CUstream_st");
void wrap_terms(const TermsInput& c, DType t, int d, cudaStream_t s) asm(
    "__wrap__ZN4moba4cuda16launch_row_termsERKNS0_10TermsInputENS_5DTypeEiP11CUstream_st");
void wrap_terms(const TermsInput& c, DType t, int d, cudaStream_t s) {
  timed("terms", s, [&] { real_terms(c, t, d, s); });
}
void real_items(const BackwardChunk&, int,
                cudaStream_t) asm("__real__ZN4moba4cuda17launch_list_itemsERKNS0_13BackwardChunkEiP11CUstream_st");
void wrap_items(const BackwardChunk& c, int d,
                cudaStream_t s) asm("__wrap__ZN4moba4cuda17launch_list_itemsERKNS0_13BackwardChunkEiP11CUstream_st");
void wrap_items(const BackwardChunk& c, int d, cudaStream_t s) {
  timed("items", s, [&] { real_items(c, d, s); });
}
}  // namespace moba::cuda

namespace {

struct Buffer {
  void* data = nullptr;
  explicit Buffer(std::size_t bytes) { must(cudaMalloc(&data, bytes)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data); }
};

/// Normal numbers, a few million of them over and over.
void fill_normal(void* data, std::int64_t count, unsigned seed) {
  static const std::vector<std::uint16_t> numbers = [] {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<std::uint16_t> bits((1 << 21) + 77);
    for (auto& x : bits) {
      const float value = normal(random);
      std::uint32_t word;
      std::memcpy(&word, &value, 4);
      x = static_cast<std::uint16_t>((word + 0x8000u) >> 16);
    }
    return bits;
  }();
  std::int64_t at = 0;
  std::size_t offset = seed * 12345u % 70000u;
  while (at < count) {
    const std::int64_t size = std::min<std::int64_t>(count - at, static_cast<std::int64_t>(numbers.size() - offset));
    must(cudaMemcpy(static_cast<std::uint16_t*>(data) + at, numbers.data() + offset, static_cast<std::size_t>(size) * 2,
                    cudaMemcpyHostToDevice));
    at += size;
    offset = 0;
  }
}

void time_one(const std::string& text) {
  std::int64_t n = 0, heads = 0, kv_heads = 0, block = 0, top_k = 0, dim = 0;
  char mode[32] = "random";
  std::sscanf(text.c_str(), "%ld,%ld,%ld,%ld,%ld,%ld,%31s", &n, &heads, &kv_heads, &block, &top_k, &dim, mode);
  const std::int64_t budget = top_k - 1;
  std::vector<std::int32_t> list(static_cast<std::size_t>(n * heads * budget), -1);
  std::mt19937 random(3);
  double pairs = 0;  // (row, key)
  double listed = 0;
  for (std::int64_t row = 0; row < n; ++row) {
    const std::int64_t own = row / block;
    for (std::int64_t head = 0; head < heads; ++head) {
      std::int32_t* slots = &list[static_cast<std::size_t>((row * heads + head) * budget)];
      const std::int64_t count = std::min(own, budget);
      if (count == own) {
        for (std::int64_t i = 0; i < count; ++i) slots[i] = static_cast<std::int32_t>(i);
      } else {
        std::int64_t chosen = 0;
        if (mode[0] == 'b') slots[chosen++] = 0;
        while (chosen < count) {
          std::int32_t b = static_cast<std::int32_t>(random() % static_cast<unsigned>(own));
          if (mode[0] == 'n') b = static_cast<std::int32_t>((row / 256 * 7919 + chosen * 104729 + head) % own);
          while (std::find(slots, slots + chosen, b) != slots + chosen) b = static_cast<std::int32_t>((b + 1) % own);
          slots[chosen++] = b;
        }
        std::sort(slots, slots + count);
      }
      listed += static_cast<double>(count);
      pairs += static_cast<double>(count * block + row % block + 1);
    }
  }
  const std::int64_t q_count = n * heads * dim, k_count = n * kv_heads * dim;
  Buffer q(2 * q_count), out(2 * q_count), dout(2 * q_count), dq(2 * q_count), k(2 * k_count), v(2 * k_count),
      dk(2 * k_count), dv(2 * k_count), lse(4 * n * heads), blocks(list.size() * 4 + 4), offsets(8);
  fill_normal(q.data, q_count, 1);
  fill_normal(out.data, q_count, 2);
  fill_normal(dout.data, q_count, 3);
  fill_normal(k.data, k_count, 4);
  fill_normal(v.data, k_count, 5);
  const std::vector<float> lses(static_cast<std::size_t>(n * heads),
                                std::log(static_cast<float>(block * top_k)) + 0.5f);
  must(cudaMemcpy(lse.data, lses.data(), lses.size() * 4, cudaMemcpyHostToDevice));
  must(cudaMemcpy(blocks.data, list.data(), list.size() * 4, cudaMemcpyHostToDevice));
  const std::int32_t ends[2] = {0, static_cast<std::int32_t>(n)};
  must(cudaMemcpy(offsets.data, ends, 8, cudaMemcpyHostToDevice));

  const Device device{DeviceKind::kCuda, 0};
  const auto tensor = [&](const Buffer& b, std::int64_t of) {
    return TensorView(b.data, DType::kBFloat16, {n, of, dim}, device);
  };
  AttendBackwardArgs args;
  args.q = tensor(q, heads), args.k = tensor(k, kv_heads), args.v = tensor(v, kv_heads);
  args.out = tensor(out, heads), args.dout = tensor(dout, heads), args.dq = tensor(dq, heads);
  args.dk = tensor(dk, kv_heads), args.dv = tensor(dv, kv_heads);
  args.lse = TensorView(lse.data, DType::kFloat32, {heads, n}, device);
  args.batch.cu_seqlens_q = args.batch.cu_seqlens_k = TensorView(offsets.data, DType::kInt32, {2}, device);
  args.batch.max_seqlen_q = args.batch.max_seqlen_k = n;
  args.selection.kind = SelectionKind::kList;
  args.selection.block_size = block;
  args.selection.blocks = TensorView(blocks.data, DType::kInt32, {n, heads, budget}, device);
  args.softmax_scale = 1.0 / std::sqrt(static_cast<double>(dim));

  cuda_tests::DeviceContext context(std::int64_t{1536} << 20, false);
  const auto stream = static_cast<cudaStream_t>(context.stream());
  const int repeats = n >= 131072 ? 4 : 10;
  std::vector<float> totals;
  std::map<std::string, std::vector<float>> stages;
  for (int i = 0; i < repeats + 1; ++i) {
    spans.clear();
    cudaEvent_t begin, end;
    must(cudaEventCreate(&begin));
    must(cudaEventCreate(&end));
    must(cudaEventRecord(begin, stream));
    cuda::attend_backward(context, args);
    must(cudaEventRecord(end, stream));
    must(cudaStreamSynchronize(stream));
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end));
    std::map<std::string, float> sums;
    for (const Span& span : spans) {
      float part = 0;
      must(cudaEventElapsedTime(&part, span.begin, span.end));
      sums[span.name] += part;
    }
    if (i == 0) continue;
    totals.push_back(ms);
    for (const auto& [name, part] : sums) stages[name].push_back(part);
  }
  const auto median = [](std::vector<float> x) {
    std::sort(x.begin(), x.end());
    return x[x.size() / 2];
  };
  const double flops = 10.0 * pairs * static_cast<double>(dim), total = median(totals);
  const double rows = static_cast<double>(n * heads), bytes = (listed + rows) * static_cast<double>(dim) * 2 * 4;
  const double floor = std::max(flops / 680e9, bytes / 4.25e9);
  std::printf("%-34s %8.3f ms %6.1f TF  %6.2f x floor |", text.c_str(), total, flops / total * 1e-9, total / floor);
  for (auto& [name, parts] : stages) std::printf(" %s %.3f", name.c_str(), median(parts));
  std::printf(" | products %.1f TF\n", flops / median(stages["products"]) * 1e-9);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    try {
      time_one(argv[i]);
    } catch (const std::exception& error) {
      std::printf("%s: %s\n", argv[i], error.what());
    }
  }
}
