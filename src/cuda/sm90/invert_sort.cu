// The scatter of invert where a list has thousands of block rows: tables of every warp for every bin would cost more
// than the entries themselves. These are sorted by two digits of the bin instead, and each digit has a short table.
#include "cuda/dependent_launch.h"
#include "cuda/sm90/digit_sort.cuh"
#include "cuda/sm90/invert_task.cuh"

namespace moba::cuda {
namespace {

constexpr int kWarps = 16, kThreads = 32 * kWarps;
/// Words of a lane: as many as there are registers for with two blocks of threads on a multiprocessor.
constexpr int kEach = 28;
using Sort = DigitSort<kWarps, kEach>;

// An entry while it is sorted: bin << kBinShift | row of the batch << kSlotBits | slot; kNoWord is none of these.
constexpr int kBinShift = 18, kLowBits = 6, kHighBits = 7;
constexpr std::int64_t kSortedRows = 1 << (kBinShift - kSlotBits);
constexpr std::int64_t kSortWindow = 1 << (kLowBits + kHighBits);
static_assert(kBinShift + kLowBits + kHighBits < 32);

template <int kListed>
__global__ void __launch_bounds__(kThreads, 2)
    invert_sort_kernel(InvertProblem problem, std::int32_t warp_rows, const std::int64_t* offsets,
                       std::uint32_t* entries, std::int32_t* pairs, std::int64_t pair_stride, ItemsProblem items,
                       int item_blocks) {
  extern __shared__ std::uint32_t shared[];
  wait_for_launches_before();
  if (static_cast<int>(blockIdx.x) < item_blocks) {
    if (blockIdx.y == 0)
      list_items<kWarps>(items, problem.lists * problem.block_rows, problem.block_rows, offsets, item_blocks);
    return;
  }
  const Task task = find_task<kSortWindow>(problem, blockIdx.x - item_blocks);
  const std::int32_t window = static_cast<std::int32_t>(task.window), bins = static_cast<std::int32_t>(task.bins);
  const std::uint32_t budget = static_cast<std::uint32_t>(problem.budget);
  const std::uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, begin = warp * warp_rows * budget;
  std::uint32_t* const counters = shared;
  std::uint32_t* const place = counters + Sort::kCounterWords;  // [bins]: of the next entry, from the list's first
  std::uint32_t* const words = place + bins;                    // [kWarps * warp_rows * budget]
  const std::int64_t first_bin = task.list * problem.block_rows;
  const EntryOutput output{entries, pairs, pair_stride, problem.first_row};
  // Within one list 32 bits count all entries: see kMaxSliceRows.
  const std::int64_t base = offsets[first_bin];
  for (int bin = threadIdx.x; bin < bins; bin += kThreads) {
    place[bin] = static_cast<std::uint32_t>(offsets[first_bin + window + bin] - base) + task.counts[bin];
  }
  const std::int32_t task_rows = static_cast<std::int32_t>(task.rows), batch_rows = kWarps * warp_rows;
#pragma unroll 1
  for (std::int32_t batch = 0; batch < task_rows; batch += batch_rows) {
    const std::int32_t warp_row = batch + static_cast<std::int32_t>(warp) * warp_rows;
    const std::uint32_t rows = static_cast<std::uint32_t>(max(0, min(warp_rows, task_rows - warp_row)));
    // Made anew for each batch: the sort needs all registers.
    std::uint32_t lane_again = lane;
    asm volatile("" : "+r"(lane_again));
    const Places<kListed> places(problem, lane_again);
    walk_list<false>(problem, places, task.list, task.first_row + warp_row, rows, window, bins,
                     [&](const std::int32_t(&listed)[kListed], std::uint32_t first_row) {
                       const std::uint32_t in_batch = (warp * warp_rows + first_row) << kSlotBits;
#pragma unroll
                       for (int u = 0; u < kListed; ++u) {
                         if (places.at[u] >= (rows - first_row) << kSlotBits) continue;
                         words[begin + first_row * budget + 32 * u + lane] =
                             listed[u] >= 0
                                 ? (static_cast<std::uint32_t>(listed[u]) << kBinShift) + in_batch + places.at[u]
                                 : kNoWord;
                       }
                     });
    __syncwarp();
    const std::uint32_t total = Sort::pass<kBinShift, kLowBits>(words, counters, begin, rows * budget);
    const std::uint32_t part = (total + kThreads - 1) / kThreads * 32, from = min(total, warp * part);
    Sort::pass<kBinShift + kLowBits, kHighBits>(words, counters, from, min(part, total - from));
    // While a batch is written, `place` counts from its entries to the list's.
    for (std::uint32_t i = threadIdx.x; i < total; i += kThreads) {
      const std::uint32_t bin = words[i] >> kBinShift;
      if (i == 0 || words[i - 1] >> kBinShift != bin) place[bin] -= i;
    }
    __syncthreads();
    const std::uint32_t first = static_cast<std::uint32_t>(task.first_row + batch) << kSlotBits;
    for (std::uint32_t i = threadIdx.x; i < total; i += kThreads) {
      const std::uint32_t word = words[i];
      const std::int64_t to = base + (place[word >> kBinShift] + i);
      const std::uint32_t entry = first + (word & ((1u << kBinShift) - 1u));
      output.put(to, entry);
    }
    if (batch + batch_rows >= task_rows) break;
    __syncthreads();
    for (std::uint32_t i = threadIdx.x; i < total; i += kThreads) {
      const std::uint32_t bin = words[i] >> kBinShift;
      if (i + 1 == total || words[i + 1] >> kBinShift != bin) place[bin] += i + 1;
    }
    __syncthreads();
  }
}

/// Rows of a warp in a batch: as many as its registers hold the entries of, and batches of equal size.
std::int64_t warp_rows_for(const InvertProblem& problem) {
  const std::int64_t most = std::min(kSortedRows / kWarps, 32 * kEach / problem.budget);
  const std::int64_t batches = (problem.segment_rows + kWarps * most - 1) / (kWarps * most);
  return (problem.segment_rows + kWarps * batches - 1) / (kWarps * batches);
}

}  // namespace

void launch_invert_sort(cudaStream_t stream, const InvertProblem& problem, const std::int64_t* offsets,
                        std::uint32_t* entries, std::int32_t* pairs, std::int64_t pair_stride,
                        const ItemsProblem* items, int item_blocks) {
  dim3 grid = walk_grid(problem, kSortWindow);
  grid.x += static_cast<unsigned>(item_blocks);
  const std::int64_t warp_rows = warp_rows_for(problem);
  const std::int64_t shared_bytes =
      4 * (Sort::kCounterWords + std::min(kSortWindow, problem.block_rows) + kWarps * warp_rows * problem.budget);
  dispatch_listed(problem.budget, [&]<int kListed>() {
    launch_dependent(invert_sort_kernel<kListed>, "invert_sort_kernel", grid, kThreads, shared_bytes, stream, problem,
                     static_cast<std::int32_t>(warp_rows), offsets, entries, pairs, pair_stride,
                     items == nullptr ? ItemsProblem{} : *items, item_blocks);
  });
}

}  // namespace moba::cuda
