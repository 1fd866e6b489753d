// Times attend_backward on made-up choices: backward_bench [name of a row]…. Medians of CUDA events, the share of
// each launcher (the program is linked so that calls of launchers come here first), and sums of the gradients' bits,
// which tell whether two builds agree.
#include <cmath>
#include <cstdio>
#include <vector>

#include "cuda/attend.h"
#include "cuda/attend_backward.h"
#include "cuda/made_up_problem.cuh"
#include "cuda/sm90/backward.h"
#include "cuda/verbs.h"

namespace moba::test {
namespace {

/// Events around the calls of one launcher in one run of the verb.
struct Launches {
  const char* name;
  std::vector<std::pair<cudaEvent_t, cudaEvent_t>> events = {};
  std::size_t used = 0;

  template <class Work>
  void time(cudaStream_t stream, const Work& work) {
    if (used == events.size()) {
      events.emplace_back();
      cudaEventCreate(&events.back().first);
      cudaEventCreate(&events.back().second);
    }
    cudaEventRecord(events[used].first, stream);
    work();
    cudaEventRecord(events[used].second, stream);
    ++used;
  }
  float ms() {
    float total = 0.0f;
    for (std::size_t i = 0; i < used; ++i) {
      float ms = 0.0f;
      cudaEventElapsedTime(&ms, events[i].first, events[i].second);
      total += ms;
    }
    used = 0;
    return total;
  }
};
Launches terms{"terms"}, pack{"pack"}, list{"list"}, products{"products"}, sums{"sums"}, tiles{"dq of tiles"};
bool timing_launches = false;

void time_row(const BenchRow& row) {
  DeviceContext context;
  context.poisons = false;
  const cudaStream_t stream = context.cuda_stream();
  const std::int64_t n = row.tokens, h = row.heads, hk = row.kv_heads, d = row.dim, budget = row.top_k - 1;
  const Memory q(n * h * d * 2), k(n * hk * d * 2), v(n * hk * d * 2), out(n * h * d * 2), lse(n * h * 4);
  const Memory dout(n * h * d * 2), dq(n * h * d * 2), dk(n * hk * d * 2), dv(n * hk * d * 2);
  const Memory list_of(n * h * budget * 4), cu(8);
  const std::int32_t offsets[2] = {0, static_cast<std::int32_t>(n)};
  must(cudaMemcpy(cu.get(), offsets, 8, cudaMemcpyHostToDevice), "cudaMemcpy");
  std::uint64_t seed = 1;
  for (const Memory* memory : {&q, &k, &v, &dout}) fill_normal(stream, *memory, row.dtype, seed++ << 40);
  fill_choice_kernel<<<1024, 256, 0, stream>>>(static_cast<std::int32_t*>(list_of.get()), n, h, budget, row.block_size,
                                               row.choice);
  const auto view = [](const Memory& memory, DType dtype, std::vector<std::int64_t> shape) {
    return shape.size() == 3 ? TensorView(memory.get(), dtype, {shape[0], shape[1], shape[2]}, gpu())
                             : TensorView(memory.get(), dtype, {shape[0], shape[1]}, gpu());
  };
  const TensorView cu_view(cu.get(), DType::kInt32, {2}, gpu());
  AttendArgs args;
  args.q = view(q, row.dtype, {n, h, d});
  args.k = view(k, row.dtype, {n, hk, d});
  args.v = view(v, row.dtype, {n, hk, d});
  args.batch = {cu_view, cu_view, n, n};
  args.selection.kind = SelectionKind::kList;
  args.selection.block_size = row.block_size;
  args.selection.blocks = view(list_of, DType::kInt32, {n, h, budget});
  args.softmax_scale = 1.0 / std::sqrt(static_cast<double>(d));
  args.result = {view(out, row.dtype, {n, h, d}), view(lse, DType::kFloat32, {h, n})};
  cuda::attend(context, args);
  const AttendBackwardArgs backward = {args.q,
                                       args.k,
                                       args.v,
                                       args.batch,
                                       args.selection,
                                       args.softmax_scale,
                                       args.result.out,
                                       args.result.lse,
                                       view(dout, row.dtype, {n, h, d}),
                                       {},
                                       view(dq, row.dtype, {n, h, d}),
                                       view(dk, row.dtype, {n, hk, d}),
                                       view(dv, row.dtype, {n, hk, d})};
  double pairs = 0.0, own_pairs = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    pairs += static_cast<double>(std::min(budget, i / row.block_size));
    own_pairs += static_cast<double>(i % row.block_size + 1);
  }
  pairs = (pairs * static_cast<double>(row.block_size) + own_pairs) * static_cast<double>(h);
  const double flops = pairs * 10.0 * static_cast<double>(d);
  const int runs = flops > 1e13 ? 2 : 5;
  heat(stream, [&] { cuda::attend_backward(context, backward); });
  const float whole = median_ms(stream, runs, [&] { cuda::attend_backward(context, backward); });
  timing_launches = true;
  cuda::attend_backward(context, backward);
  timing_launches = false;
  must(cudaStreamSynchronize(stream), "attend_backward");
  std::printf("%-21s %8.3f ms %4.0f TF x%.2f |", row.name, whole, flops / whole * 1e-9, whole / (flops / 680e9));
  for (Launches* launches : {&terms, &pack, &list, &products, &sums, &tiles}) {
    const float ms = launches->ms();
    std::printf(" %s %.3f", launches->name, ms);
    if (launches == &products) std::printf(" (%.0f TF)", flops / ms * 1e-9);
  }
  std::printf(" | %08x %08x %08x\n", bits_of(dq), bits_of(dk), bits_of(dv));
  std::fflush(stdout);
}

}  // namespace
}  // namespace moba::test

#define MOBA_TIMED(launches, symbol, parameters, arguments)          \
  namespace moba::cuda {                                             \
  void real_##launches parameters asm("__real_" symbol);             \
  void wrapped_##launches parameters asm("__wrap_" symbol);          \
  void wrapped_##launches parameters {                               \
    if (!test::timing_launches) return real_##launches arguments;    \
    test::launches.time(stream, [&] { real_##launches arguments; }); \
  }                                                                  \
  }
MOBA_TIMED(pack, "_ZN4moba4cuda17launch_pack_tilesERKNS0_13BackwardChunkEP11CUstream_st",
           (const BackwardChunk& chunk, cudaStream_t stream), (chunk, stream))
MOBA_TIMED(list, "_ZN4moba4cuda17launch_list_itemsERKNS0_13BackwardRoundEiP11CUstream_st",
           (const BackwardRound& round, int dim, cudaStream_t stream), (round, dim, stream))
MOBA_TIMED(products, "_ZN4moba4cuda24launch_backward_productsERKNS0_13BackwardChunkENS_5DTypeEiiP11CUstream_st",
           (const BackwardChunk& chunk, DType dtype, int dim, int processors, cudaStream_t stream),
           (chunk, dtype, dim, processors, stream))
MOBA_TIMED(terms, "_ZN4moba4cuda16launch_row_termsERKNS0_10TermsInputENS_5DTypeEiP11CUstream_st",
           (const TermsInput& input, DType dtype, int dim, cudaStream_t stream), (input, dtype, dim, stream))
MOBA_TIMED(sums, "_ZN4moba4cuda20launch_backward_sumsERKNS0_13BackwardChunkENS_5DTypeEiiP11CUstream_st",
           (const BackwardChunk& chunk, DType dtype, int dim, int processors, cudaStream_t stream),
           (chunk, dtype, dim, processors, stream))
MOBA_TIMED(tiles, "_ZN4moba4cuda16launch_add_tilesERKNS0_13BackwardChunkENS_5DTypeEP11CUstream_st",
           (const BackwardChunk& chunk, DType dtype, cudaStream_t stream), (chunk, dtype, stream))

int main(int argc, char** argv) {
  return moba::test::time_rows(argc, argv, moba::test::kBenchRows, moba::test::time_row);
}
