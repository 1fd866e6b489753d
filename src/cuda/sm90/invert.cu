// invert: row -> blocks into block -> rows by counting, in row order, without a sort. A block of threads owns a run of
// rows of one list (a segment) and each of its warps a part of it: count each segment, sum over the segments, then walk
// the rows once more and put each at its place. Segments are taken in order, so that what is written at a time is a
// short stretch of each block's rows, and its lines are full when they leave the cache.
#include <algorithm>

#include "cuda/cuda_check.h"
#include "cuda/dependent_launch.h"
#include "cuda/launch.h"
#include "cuda/sm90/block_scan.cuh"
#include "cuda/sm90/list_walk.cuh"

namespace moba::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
// Block rows that the tables of a block of threads in shared memory have room for. A batch with more is walked once for
// each window of them.
constexpr std::int64_t kWindow = 4160;

/// What a block of threads works on.
struct Task {
  std::int64_t list, segment, window;
  std::int64_t bins;                   // of the window
  std::int64_t first_row, rows;        // of the warp's part of the segment, in the slice
  std::uint32_t* counts;               // of the segment, at the window's first bin
};

__device__ __forceinline__ Task find_task(const InvertProblem& problem) {
  Task task;
  // Lists first: neighbours then read the same rows of the selection, whose lists share cache lines.
  task.list = blockIdx.x % problem.lists;
  task.segment = blockIdx.x / problem.lists;
  task.window = static_cast<std::int64_t>(blockIdx.y) * kWindow;
  task.bins = min(kWindow, problem.block_rows - task.window);
  const std::int64_t part = problem.segment_rows / kWarps;
  task.first_row = task.segment * problem.segment_rows + threadIdx.x / 32 * part;
  task.rows = min(part, problem.rows - task.first_row);
  task.counts = problem.counts + (task.list * problem.segments + task.segment) * problem.block_rows + task.window;
  return task;
}

__global__ void __launch_bounds__(kThreads, 4) invert_count_kernel(InvertProblem problem) {
  extern __shared__ std::uint32_t shared[];  // [bins]
  wait_for_launches_before();
  const Task task = find_task(problem);
  for (std::int64_t bin = threadIdx.x; bin < task.bins; bin += kThreads) shared[bin] = 0;
  __syncthreads();
  walk_list<true>(problem, task.list, task.first_row, task.rows, static_cast<std::int32_t>(task.window),
                  static_cast<std::int32_t>(task.bins), [&](const Listed (&entries)[kListed], std::uint32_t) {
#pragma unroll
                    for (const Listed& entry : entries) {
                      if (entry.bin >= 0) atomicAdd(shared + entry.bin, 1u);
                    }
                  });
  __syncthreads();
  for (std::int64_t bin = threadIdx.x; bin < task.bins; bin += kThreads) task.counts[bin] = shared[bin];
}

/// counts[list, :, row] becomes its exclusive sum over the segments; the sum of all is returned.
__device__ __forceinline__ std::uint32_t sum_column(const InvertProblem& problem, std::int64_t bin) {
  constexpr int kAhead = 16;
  const std::int64_t list = bin / problem.block_rows, row = bin - list * problem.block_rows;
  std::uint32_t* counts = problem.counts + list * problem.segments * problem.block_rows + row;
  std::uint32_t sum = 0;
  for (std::int64_t first = 0; first < problem.segments; first += kAhead) {
    std::uint32_t values[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      values[i] = first + i < problem.segments ? counts[(first + i) * problem.block_rows] : 0;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < problem.segments) counts[(first + i) * problem.block_rows] = sum;
      sum += values[i];
    }
  }
  return sum;
}

/// totals[bin + 1] becomes the entries of each bin.
__global__ void invert_columns_kernel(InvertProblem problem, std::int64_t* totals) {
  wait_for_launches_before();
  const std::int64_t bin = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (bin < problem.lists * problem.block_rows) totals[bin + 1] = sum_column(problem, bin);
}

constexpr int kScanThreads = 1024;
constexpr int kScanEach = 8;

/// offsets[bin + 1] holds totals, unless `sums_columns`, and becomes their inclusive sum; first_item likewise of the work
/// items. One block.
__global__ void __launch_bounds__(kScanThreads)
    invert_offsets_kernel(InvertProblem problem, bool sums_columns, std::int64_t item_rows, std::int64_t* offsets,
                          std::int32_t* first_item) {
  wait_for_launches_before();
  const std::int64_t bins = problem.lists * problem.block_rows;
  if (sums_columns) {
    for (std::int64_t bin = threadIdx.x; bin < bins; bin += kScanThreads) offsets[bin + 1] = sum_column(problem, bin);
    __syncthreads();
  }
  std::int64_t entries = 0, items = 0;  // of the bins before
  if (threadIdx.x == 0) {
    offsets[0] = 0;
    if (first_item != nullptr) first_item[0] = 0;
  }
  for (std::int64_t first = 0; first < bins; first += kScanThreads * kScanEach) {
    const std::int64_t begin = first + threadIdx.x * kScanEach;
    std::int64_t counts[kScanEach];
    std::int64_t my_entries = 0, my_items = 0;
#pragma unroll
    for (int i = 0; i < kScanEach; ++i) {
      counts[i] = begin + i < bins ? offsets[begin + i + 1] : 0;
      my_entries += counts[i];
      my_items += (counts[i] + item_rows - 1) / item_rows;
    }
    const auto add = [](std::int64_t a, std::int64_t b) { return a + b; };
    const auto entry_scan = block_scan<kScanThreads>(my_entries, std::int64_t{0}, add);
    const auto item_scan = block_scan<kScanThreads>(my_items, std::int64_t{0}, add);
    std::int64_t entry = entries + entry_scan.exclusive, item = items + item_scan.exclusive;
#pragma unroll
    for (int i = 0; i < kScanEach; ++i) {
      entry += counts[i];
      item += (counts[i] + item_rows - 1) / item_rows;
      if (begin + i < bins) {
        offsets[begin + i + 1] = entry;
        if (first_item != nullptr) first_item[begin + i + 1] = static_cast<std::int32_t>(item);
      }
    }
    entries += entry_scan.total;
    items += item_scan.total;
  }
}

/// Tables of a scattering block of threads for a window of bins.
struct ScatterTables {
  std::uint32_t* place;   // [bins]: of the segment's first entry, counted from the list's first
  std::uint32_t* rows;    // [kWarps, bins]: the rows of 32 that chose the bin, as bits; 0 between uses
  std::uint16_t* before;  // [kWarps, bins, rounded up to two]: entries of the segment before the warp's next
  std::int64_t stride;    // of `before`

  static constexpr std::int64_t bytes(std::int64_t bins) {
    return bins * 4 + kWarps * bins * 4 + kWarps * (bins + bins % 2) * 2;
  }
  __device__ ScatterTables(std::uint32_t* shared, std::int64_t bins)
      : place(shared),
        rows(shared + bins),
        before(reinterpret_cast<std::uint16_t*>(shared + (kWarps + 1) * bins)),
        stride(bins + bins % 2) {}
};

__global__ void __launch_bounds__(kThreads, 3)
    invert_scatter_kernel(InvertProblem problem, const std::int64_t* offsets, std::uint32_t* entries,
                          std::int32_t* pairs, std::int64_t pair_stride) {
  extern __shared__ std::uint32_t shared[];
  wait_for_launches_before();
  const Task task = find_task(problem);
  const std::int32_t window = static_cast<std::int32_t>(task.window), bins = static_cast<std::int32_t>(task.bins);
  const ScatterTables tables(shared, bins);
  const std::int64_t first_bin = task.list * problem.block_rows;
  // Within one list 32 bits count all entries: see kMaxSliceRows.
  const std::int64_t base = offsets[first_bin];
  const int words = static_cast<int>(tables.stride / 2);  // of a warp's `before`
  std::uint32_t* const before_words = reinterpret_cast<std::uint32_t*>(tables.before);
  for (int bin = threadIdx.x; bin < bins; bin += kThreads) {
    tables.place[bin] = static_cast<std::uint32_t>(offsets[first_bin + window + bin] - base) + task.counts[bin];
  }
  for (int i = threadIdx.x; i < kWarps * bins; i += kThreads) tables.rows[i] = 0;
  for (int i = threadIdx.x; i < kWarps * words; i += kThreads) before_words[i] = 0;
  __syncthreads();

  // How often each warp's rows chose each bin; then the sums over the warps before. Two counts a word: a segment has
  // fewer than 2^16 rows, and a row has a block once.
  const int warp = threadIdx.x / 32;
  walk_list<false>(problem, task.list, task.first_row, task.rows, window, bins,
                   [&](const Listed (&listed)[kListed], std::uint32_t) {
#pragma unroll
                     for (const Listed& entry : listed) {
                       if (entry.bin >= 0) {
                         atomicAdd(before_words + warp * words + entry.bin / 2, entry.bin % 2 == 0 ? 1u : 0x10000u);
                       }
                     }
                   });
  __syncthreads();
  for (int i = threadIdx.x; i < words; i += kThreads) {
    std::uint32_t sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const std::uint32_t count = before_words[w * words + i];
      before_words[w * words + i] = sum;
      sum += count;
    }
  }
  __syncthreads();

  std::uint32_t* const rows = tables.rows + warp * bins;
  std::uint16_t* const before = tables.before + warp * tables.stride;
  walk_list<false>(problem, task.list, task.first_row, task.rows, window, bins,
                   [&](const Listed (&listed)[kListed], std::uint32_t first_row) {
#pragma unroll
                     for (const Listed& entry : listed) {
                       if (entry.bin >= 0) atomicOr(rows + entry.bin, 1u << entry.row());
                     }
                     __syncwarp();
                     std::uint32_t peers[kListed], start[kListed];
#pragma unroll
                     for (int u = 0; u < kListed; ++u) {
                       const int bin = listed[u].bin;
                       peers[u] = bin >= 0 ? rows[bin] : 0;
                       start[u] = bin >= 0 ? before[bin] : 0;
                     }
                     __syncwarp();
#pragma unroll
                     for (int u = 0; u < kListed; ++u) {
                       const int bin = listed[u].bin;
                       if (bin < 0) continue;
                       const std::uint32_t earlier = peers[u] & ((1u << listed[u].row()) - 1u);
                       if (earlier == 0) {
                         before[bin] = static_cast<std::uint16_t>(start[u] + __popc(peers[u]));
                         rows[bin] = 0;
                       }
                       const std::int64_t to = base + (tables.place[bin] + start[u] + __popc(earlier));
                       const std::uint32_t first = static_cast<std::uint32_t>(task.first_row) + first_row;  // in the slice
                       if (entries != nullptr) {
                         entries[to] = (first << kSlotBits) + listed[u].at;
                       } else {
                         pairs[to * pair_stride] = static_cast<std::int32_t>(problem.first_row + first + listed[u].row());
                         pairs[to * pair_stride + 1] = static_cast<std::int32_t>(listed[u].slot());
                       }
                     }
                     __syncwarp();
                   });
}

__global__ void work_items_kernel(std::int64_t bins, std::int64_t block_rows, std::int64_t item_rows,
                                  const std::int64_t* offsets, const std::int32_t* first_item, const BlockSpan* blocks,
                                  WorkItem* items) {
  wait_for_launches_before();
  // A warp for each bin: a block that every row chose has as many items as all others together.
  const std::int64_t bin = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (bin >= bins) return;
  const std::int64_t begin = offsets[bin], end = offsets[bin + 1];
  const std::int64_t list = bin / block_rows;
  const std::int32_t block_row = static_cast<std::int32_t>(bin - list * block_rows);
  const BlockSpan block = blocks[block_row];
  std::int64_t at = begin + (threadIdx.x % 32) * item_rows;
  for (std::int64_t i = first_item[bin] + threadIdx.x % 32; at < end; i += 32, at += 32 * item_rows) {
    items[i] = {at,
                block.first_key,
                static_cast<std::int32_t>(min(item_rows, end - at)),
                block.keys,
                static_cast<std::int32_t>(list),
                block_row};
  }
}

dim3 walk_grid(const InvertProblem& problem) {
  return dim3(static_cast<unsigned>(problem.lists * problem.segments),
              static_cast<unsigned>((problem.block_rows + kWindow - 1) / kWindow));
}

}  // namespace

void launch_invert_count(cudaStream_t stream, const InvertProblem& problem) {
  const dim3 grid = walk_grid(problem);
  if (grid.x == 0 || grid.y == 0) return;
  const std::int64_t shared_bytes = std::min(kWindow, problem.block_rows) * 4;
  launch_dependent(invert_count_kernel, "invert_count_kernel", grid, kThreads, shared_bytes, stream, problem);
}

void launch_invert_scan(cudaStream_t stream, const InvertProblem& problem, std::int64_t item_rows,
                        std::int64_t* offsets, std::int32_t* first_item) {
  const std::int64_t bins = problem.lists * problem.block_rows;
  // So many counts one block of threads sums in the time of a second launch.
  constexpr std::int64_t kFewCounts = 16 * kScanThreads;
  const bool few = bins * problem.segments <= kFewCounts;
  if (bins > 0 && !few) {
    constexpr int kColumnThreads = 128;
    const auto blocks = static_cast<unsigned>((bins + kColumnThreads - 1) / kColumnThreads);
    launch_dependent(invert_columns_kernel, "invert_columns_kernel", blocks, kColumnThreads, 0, stream, problem,
                     offsets);
  }
  launch_dependent(invert_offsets_kernel, "invert_offsets_kernel", 1, kScanThreads, 0, stream, problem, few, item_rows,
                   offsets, first_item);
}

void launch_invert_scatter(cudaStream_t stream, const InvertProblem& problem, const std::int64_t* offsets,
                           std::uint32_t* entries, std::int32_t* pairs, std::int64_t pair_stride) {
  const dim3 grid = walk_grid(problem);
  if (grid.x == 0 || grid.y == 0) return;
  const std::int64_t shared_bytes = ScatterTables::bytes(std::min(kWindow, problem.block_rows));
  launch_dependent(invert_scatter_kernel, "invert_scatter_kernel", grid, kThreads, shared_bytes, stream, problem,
                   offsets, entries, pairs, pair_stride);
}

void launch_work_items(cudaStream_t stream, std::int64_t bins, std::int64_t block_rows, std::int64_t item_rows,
                       const std::int64_t* offsets, const std::int32_t* first_item, const BlockSpan* blocks,
                       WorkItem* items) {
  if (bins == 0) return;
  constexpr int kWarpsEach = 8;
  launch_dependent(work_items_kernel, "work_items_kernel", static_cast<unsigned>((bins + kWarpsEach - 1) / kWarpsEach),
                   32 * kWarpsEach, 0, stream, bins, block_rows, item_rows, offsets, first_item, blocks, items);
}

}  // namespace moba::cuda
