// Times the stages of the forward pass on made-up choices: attend_bench [name of a row]…. Medians of CUDA events, and
// sums of the results' bits, which tell whether two builds agree. Refuses results that change from run to run.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "cuda/attend.h"
#include "cuda/cuda_check.h"
#include "cuda/inverse.h"
#include "cuda/made_up_problem.cuh"
#include "cuda/slices.h"
#include "cuda/tensor_map.h"
#include "cuda/verbs.h"

namespace moba::test {
namespace {

constexpr int kRuns = 7, kRepeats = 50;

/// Error unless every run has the bits of the first. They are returned.
unsigned must_repeat(DeviceContext& context, const AttendArgs& args, const Memory& out, const Memory& lse) {
  unsigned first = 0;
  for (int run = 0; run < kRepeats; ++run) {
    cuda::attend(context, args);
    const unsigned bits = bits_of(out) * 31 + bits_of(lse);
    if (run == 0) first = bits;
    if (bits != first) throw std::runtime_error("run " + std::to_string(run) + " has other bits than the first");
  }
  return first;
}

void time_row(const BenchRow& row) {
  DeviceContext context(std::int64_t{12} << 30);
  context.poisons = false;
  const cudaStream_t stream = context.cuda_stream();
  const std::int64_t n = row.tokens, h = row.heads, hk = row.kv_heads, d = row.dim, budget = row.top_k - 1;
  const Memory q(n * h * d * 2), k(n * hk * d * 2), v(n * hk * d * 2), out(n * h * d * 2), lse(n * h * 4);
  const Memory list(n * h * budget * 4), cu(8);
  const std::int32_t offsets[2] = {0, static_cast<std::int32_t>(n)};
  must(cudaMemcpy(cu.get(), offsets, 8, cudaMemcpyHostToDevice), "cudaMemcpy");
  fill_normal(stream, q, row.dtype, 1);
  fill_normal(stream, k, row.dtype, 1ull << 40);
  fill_normal(stream, v, row.dtype, 1ull << 41);
  fill_choice_kernel<<<1024, 256, 0, stream>>>(static_cast<std::int32_t*>(list.get()), n, h, budget, row.block_size,
                                               row.choice);
  AttendArgs args;
  args.q = TensorView(q.get(), row.dtype, {n, h, d}, gpu());
  args.k = TensorView(k.get(), row.dtype, {n, hk, d}, gpu());
  args.v = TensorView(v.get(), row.dtype, {n, hk, d}, gpu());
  const TensorView cu_view(cu.get(), DType::kInt32, {2}, gpu());
  args.batch = {cu_view, cu_view, n, n};
  args.selection.kind = SelectionKind::kList;
  args.selection.block_size = row.block_size;
  args.selection.blocks = TensorView(list.get(), DType::kInt32, {n, h, budget}, gpu());
  args.softmax_scale = 1.0 / std::sqrt(static_cast<double>(d));
  args.result = {TensorView(out.get(), row.dtype, {n, h, d}, gpu()),
                 TensorView(lse.get(), DType::kFloat32, {h, n}, gpu())};

  const unsigned bits = must_repeat(context, args, out, lse);
  heat(stream, [&] { cuda::attend(context, args); });
  const float whole = median_ms(stream, kRuns, [&] { cuda::attend(context, args); });

  // The stages of one slice that holds everything.
  const cuda::HeadGroups groups = cuda::head_groups(h, hk, h);
  const cuda::Slice slice{0, n, 0, h};
  const cuda::BlockMap map(context, args.batch, n, n, row.block_size);
  const std::int64_t item_rows = cuda::item_rows_for(slice, budget, row.block_size, d, groups, cuda::multiprocessors());
  cuda::BlockInverse inverse(context, map, args.selection, slice, item_rows);
  const Memory partial_out(n * h * budget * d * 2), partial_lse(n * h * budget * 4 + 20);  // see attend()
  cuda::HistoryArgs history;
  history.q = q.get();
  history.q_row_stride = h * d, history.q_head_stride = d;
  history.block_size = row.block_size;
  history.groups = groups;
  history.softmax_scale = static_cast<float>(args.softmax_scale);
  cuda::Partials& partials = history.partials;
  partials.out = partial_out.get(), partials.lse = static_cast<float*>(partial_lse.get());
  partials.rows = n, partials.heads = static_cast<std::int32_t>(h), partials.budget = static_cast<std::int32_t>(budget);
  const int key_rows = cuda::history_key_rows(row.block_size);
  const CUtensorMap k_map = cuda::tensor_map("k", args.k, key_rows), v_map = cuda::tensor_map("v", args.v, key_rows);
  const float invert_ms = median_ms(stream, kRuns, [&] { inverse.build(slice); });
  must(cudaMemsetAsync(partial_lse.get(), 0xff, static_cast<std::size_t>(n * h * budget * 4), stream), "memset");
  history.items = inverse.items(), history.item_count = inverse.item_count(), history.entries = inverse.entries();
  history.units_taken = static_cast<std::int32_t*>(partial_lse.get()) + n * h * budget;
  const float history_ms = median_ms(stream, kRuns, [&] {
    must(cudaMemsetAsync(history.units_taken, 0xff, sizeof(std::int32_t), stream), "cudaMemsetAsync");
    cuda::launch_attend_history(stream, row.dtype, d, history, k_map, v_map, inverse.max_items());
  });
  cuda::OwnArgs own;
  own.q = q.get(), own.k = k.get(), own.v = v.get(), own.out = out.get(), own.lse = static_cast<float*>(lse.get());
  own.q_row_stride = own.out_row_stride = h * d, own.q_head_stride = own.out_head_stride = d;
  own.k_row_stride = own.v_row_stride = hk * d, own.k_head_stride = own.v_head_stride = d;
  own.lse_head_stride = n;
  own.sequences = map.sequences(), own.sequence_count = 1;
  own.rows = n, own.block_size = row.block_size, own.heads_per_kv = groups.heads_per_kv;
  own.partials = history.partials;
  own.softmax_scale = history.softmax_scale;
  const CUtensorMap q_own = cuda::tensor_map("q", args.q, cuda::kOwnRows);
  const CUtensorMap k_own = cuda::tensor_map("k", args.k, cuda::kOwnRows);
  const CUtensorMap v_own = cuda::tensor_map("v", args.v, cuda::kOwnRows);
  own.units_taken = history.units_taken + 1;
  const auto own_pass = [&] {
    must(cudaMemsetAsync(own.units_taken, 0xff, sizeof(std::int32_t), stream), "cudaMemsetAsync");
    cuda::launch_attend_own(stream, row.dtype, d, own, q_own, k_own, v_own);
  };
  const float own_ms = median_ms(stream, kRuns, own_pass);
  own.partials.budget = 0;
  const float own_alone_ms = median_ms(stream, kRuns, own_pass);

  double pairs = 0.0;
  for (std::int64_t i = 0; i < n; ++i) pairs += static_cast<double>(std::min(budget, i / row.block_size));
  pairs *= static_cast<double>(h);
  const double flops = pairs * 4.0 * static_cast<double>(row.block_size * d);
  const double own_flops = static_cast<double>(n * h * d) * 4.0 * static_cast<double>(row.block_size + 1) / 2.0;
  const double q_bytes = static_cast<double>(n * h * d * 2), partial_bytes = pairs * static_cast<double>(d * 2 + 4);
  const double history_bytes = partial_bytes + q_bytes + 2.0 * static_cast<double>(n * hk * d * 2);
  const double own_bytes = partial_bytes + 2.0 * q_bytes + 2.0 * static_cast<double>(n * hk * d * 2);
  const auto floor_ms = [](double f, double b) { return std::max(f / 680e12, b / 4.25e12) * 1e3; };
  const double history_floor = floor_ms(flops, history_bytes), own_floor = floor_ms(own_flops, own_bytes);
  std::printf(
      "%-21s whole %7.3f | invert %6.3f | history %7.3f %4.0f TF %4.0f GB/s x%.2f | own %6.3f (alone %6.3f) %4.0f "
      "TF %4.0f GB/s x%.2f | x%.2f | %08x\n",
      row.name, whole, invert_ms, history_ms, flops / history_ms * 1e-9, history_bytes / history_ms * 1e-6,
      history_ms / history_floor, own_ms, own_alone_ms, own_flops / own_alone_ms * 1e-9, own_bytes / own_ms * 1e-6,
      own_ms / own_floor, whole / (history_floor + own_floor), bits);
  std::fflush(stdout);
}

}  // namespace
}  // namespace moba::test

int main(int argc, char** argv) {
  return moba::test::time_rows(argc, argv, moba::test::kBenchRows, moba::test::time_row);
}
