// invert: row -> blocks into block -> rows by counting, in row order. A block of threads owns a run of rows of one list
// (a segment): count each segment, sum over the segments, then sort the entries of a segment by block in shared memory,
// so that each block's rows leave as a run of whole lines.
#include <algorithm>

#include "cuda/cuda_check.h"
#include "cuda/dependent_launch.h"
#include "cuda/launch.h"
#include "cuda/sm90/block_scan.cuh"
#include "cuda/sm90/invert_task.cuh"

namespace moba::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
// Block rows that a block of threads counts. A batch with more is walked once for each window.
constexpr std::int64_t kCountWindow = 4160;
// The most block rows for which each warp has tables of all bins. Where there are more, see invert_sort.cu.
constexpr std::int64_t kMostTableBins = 2048;

template <int kListed>
__global__ void __launch_bounds__(kThreads, kListed == 8 ? 3 : 4) invert_count_kernel(InvertProblem problem) {
  extern __shared__ std::uint32_t shared[];  // [bins]
  wait_for_launches_before();
  const Task task = find_task<kCountWindow>(problem, blockIdx.x);
  for (std::int64_t bin = threadIdx.x; bin < task.bins; bin += kThreads) shared[bin] = 0;
  __syncthreads();
  const std::int64_t part = problem.segment_rows / kWarps, first = threadIdx.x / 32 * part;
  const Places<kListed> places(problem);
  walk_list<true>(problem, places, task.list, task.first_row + first, min(part, task.rows - first),
                  static_cast<std::int32_t>(task.window), static_cast<std::int32_t>(task.bins),
                  [&](const std::int32_t(&bins)[kListed], std::uint32_t) {
#pragma unroll
                    for (const std::int32_t bin : bins) {
                      if (bin >= 0) atomicAdd(shared + bin, 1u);
                    }
                  });
  __syncthreads();
  for (std::int64_t bin = threadIdx.x; bin < task.bins; bin += kThreads) task.counts[bin] = shared[bin];
}

/// Calls use(segment, count) for counts[list, first ... end, row] of a bin in ascending order; several are read at a
/// time.
template <class Use>
__device__ __forceinline__ void walk_column(const InvertProblem& problem, std::int64_t bin, std::int64_t first,
                                            std::int64_t end, Use&& use) {
  constexpr int kAhead = 16;
  const std::int64_t list = bin / problem.block_rows, row = bin - list * problem.block_rows;
  std::uint32_t* const counts = problem.counts + list * problem.segments * problem.block_rows + row;
  for (; first < end; first += kAhead) {
    std::uint32_t values[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) values[i] = first + i < end ? counts[(first + i) * problem.block_rows] : 0;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < end) use(counts[(first + i) * problem.block_rows], values[i]);
    }
  }
}

/// counts[list, first ... end, row] becomes its exclusive sum over the segments, from `sum` on; the sum is returned.
__device__ __forceinline__ std::uint32_t sum_column(const InvertProblem& problem, std::int64_t bin, std::int64_t first,
                                                    std::int64_t end, std::uint32_t sum) {
  walk_column(problem, bin, first, end, [&](std::uint32_t& count, std::uint32_t value) {
    count = sum;
    sum += value;
  });
  return sum;
}

/// Warps that share the segments of 32 bins: a slice may have few bins and many segments.
constexpr int kColumnWarps = 8;

/// totals[bin] becomes the entries of each bin, and the counts their sums.
__global__ void __launch_bounds__(32 * kColumnWarps) invert_columns_kernel(InvertProblem problem) {
  __shared__ std::uint32_t sums[kColumnWarps][32];
  wait_for_launches_before();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::int64_t bin = static_cast<std::int64_t>(blockIdx.x) * 32 + lane;
  const bool exists = bin < problem.lists * problem.block_rows;
  const std::int64_t part = (problem.segments + kColumnWarps - 1) / kColumnWarps;
  const std::int64_t first = warp * part, end = min(problem.segments, first + part);
  std::uint32_t sum = 0;
  if (exists) walk_column(problem, bin, first, end, [&](const std::uint32_t&, std::uint32_t value) { sum += value; });
  sums[warp][lane] = sum;
  __syncthreads();
  if (!exists) return;
  std::uint32_t before = 0;
  for (int w = 0; w < warp; ++w) before += sums[w][lane];
  sum = sum_column(problem, bin, first, end, before);
  if (warp == kColumnWarps - 1) problem.totals[bin] = sum;
}

constexpr int kScanThreads = 1024;

/// Entries, and the work items that they make.
struct Sums {
  std::int64_t entries, items;
};
struct AddSums {
  __device__ Sums operator()(const Sums& a, const Sums& b) const { return {a.entries + b.entries, a.items + b.items}; }
};

/// offsets[bin + 1] and first_item[bin + 1] become the inclusive sums of the totals and of their work items. A block of
/// threads has kScanThreads bins, and adds up those before it for itself. The totals come from the counts where
/// `sums_columns`, which is for one block.
__global__ void __launch_bounds__(kScanThreads)
    invert_offsets_kernel(InvertProblem problem, bool sums_columns, Divisor item_rows, std::int32_t last_of_item,
                          std::int64_t* offsets, std::int32_t* first_item) {
  wait_for_launches_before();
  const std::int64_t bins = problem.lists * problem.block_rows;
  const auto sums_of = [&](std::uint32_t total) {
    return Sums{total, item_rows.quotient(static_cast<std::int32_t>(total) + last_of_item)};
  };
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kScanThreads;
  Sums before{};
#pragma unroll 8
  for (std::int64_t bin = threadIdx.x; bin < begin; bin += kScanThreads) {
    before = AddSums{}(before, sums_of(problem.totals[bin]));
  }
  if (begin > 0) before = block_scan<kScanThreads>(before, Sums{}, AddSums{}).total;
  // One block has all bins, which may be more than it has threads.
  const std::int64_t end = sums_columns ? bins : min(bins, begin + kScanThreads);
  for (std::int64_t first = begin; first < end; first += kScanThreads) {
    const std::int64_t bin = first + threadIdx.x;
    Sums mine{};
    if (bin < end)
      mine = sums_of(sums_columns ? sum_column(problem, bin, 0, problem.segments, 0) : problem.totals[bin]);
    const auto scan = block_scan<kScanThreads>(mine, Sums{}, AddSums{});
    const Sums after = AddSums{}(AddSums{}(before, scan.exclusive), mine);
    if (bin < end) {
      offsets[bin + 1] = after.entries;
      if (first_item != nullptr) first_item[bin + 1] = static_cast<std::int32_t>(after.items);
    }
    before = AddSums{}(before, scan.total);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    offsets[0] = 0;
    if (first_item != nullptr) first_item[0] = 0;
  }
}

/// Entries that a block of threads sorts at a time, unless 32 rows of each warp have more; and the most rows.
constexpr std::int64_t kSortedEntries = 8192, kSortedRows = 4096;
// An entry while it is sorted: bin << kBinShift | row of the batch << kSlotBits | slot.
constexpr int kBinShift = 18;
static_assert(kSortedRows <= 1 << (kBinShift - kSlotBits) && kMostTableBins <= 1 << (32 - kBinShift));

/// Rows of a segment that are sorted together: whole steps of all warps.
std::int64_t batch_rows_for(const InvertProblem& problem) {
  std::int64_t rows = 32 * kWarps;
  while (2 * rows <= std::min(kSortedRows, problem.segment_rows) && 2 * rows * problem.budget <= kSortedEntries) {
    rows *= 2;
  }
  return rows;
}

/// Tables of a block of threads in shared memory, for so many bins and entries. `stride`: bins, rounded up
/// so that every table can be filled 16 bytes at a time.
struct SortTables {
  std::uint32_t* place;   // [stride]: of the batch's first entry, counted from the list's first
  std::uint32_t* shift;   // [stride]: from a place among the batch's sorted entries to that of the list
  std::uint32_t* rows;    // [kWarps, stride]: the rows of a step that chose the bin, as bits; 0 between uses
  std::uint16_t* before;  // [kWarps, stride]: place of the warp's next entry among the sorted; counts at first
  std::uint32_t* sorted;  // [entries]
  std::uint16_t* bin_of;  // [entries]: of each entry of the batch; kNoBin where it does not count
  std::int32_t stride;

  static constexpr std::uint16_t kNoBin = 0xffff;
  __host__ __device__ static constexpr std::int64_t stride_for(std::int64_t bins) { return (bins + 7) / 8 * 8; }
  static constexpr std::int64_t bytes(std::int64_t bins, std::int64_t entries) {
    return (8 + 6 * kWarps) * stride_for(bins) + 6 * entries;
  }
  __device__ SortTables(std::uint32_t* shared, std::int32_t bins, std::int32_t entries)
      : stride(static_cast<std::int32_t>(stride_for(bins))) {
    place = shared;
    shift = place + stride;
    rows = shift + stride;
    before = reinterpret_cast<std::uint16_t*>(rows + kWarps * stride);
    sorted = reinterpret_cast<std::uint32_t*>(before + kWarps * stride);
    bin_of = reinterpret_cast<std::uint16_t*>(sorted + entries);
  }
};

/// 16 bytes at a time, by all threads of the block.
__device__ __forceinline__ void fill_zeros(void* shared, std::int32_t bytes) {
  for (std::int32_t i = threadIdx.x; i < bytes / 16; i += kThreads)
    static_cast<uint4*>(shared)[i] = make_uint4(0, 0, 0, 0);
}

/// `before` holds the counts of each warp and becomes their places among the sorted entries, which lie by bin, then by
/// warp; `place` moves on to the next batch. Returns the number of entries. All threads of the block.
__device__ __forceinline__ std::uint32_t find_places(const SortTables& tables, std::int32_t bins) {
  const std::int32_t each = (bins + kThreads - 1) / kThreads,
                     begin = min(bins, static_cast<std::int32_t>(threadIdx.x) * each);
  const std::int32_t end = min(bins, begin + each), stride = tables.stride;
  std::uint32_t mine = 0;
  for (std::int32_t bin = begin; bin < end; ++bin) {
#pragma unroll
    for (int w = 0; w < kWarps; ++w) mine += tables.before[w * stride + bin];
  }
  const auto scan = block_scan<kThreads>(mine, 0u, [](std::uint32_t a, std::uint32_t b) { return a + b; });
  std::uint32_t at = scan.exclusive;
  for (std::int32_t bin = begin; bin < end; ++bin) {
    const std::uint32_t place = tables.place[bin], start = at;
    tables.shift[bin] = place - start;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const std::uint32_t count = tables.before[w * stride + bin];
      tables.before[w * stride + bin] = static_cast<std::uint16_t>(at);
      at += count;
    }
    tables.place[bin] = place + at - start;
  }
  return scan.total;
}

template <int kListed>
__global__ void __launch_bounds__(kThreads, kListed == 2 ? 4 : 3)
    invert_scatter_kernel(InvertProblem problem, std::int32_t batch_rows, const std::int64_t* offsets,
                          std::uint32_t* entries, std::int32_t* pairs, std::int64_t pair_stride, ItemsProblem items,
                          int item_blocks) {
  extern __shared__ std::uint32_t shared[];
  wait_for_launches_before();
  if (static_cast<int>(blockIdx.x) < item_blocks) {
    list_items<kWarps>(items, problem.lists * problem.block_rows, problem.block_rows, offsets, item_blocks);
    return;
  }
  const Task task = find_task<kMostTableBins>(problem, blockIdx.x - item_blocks);
  const std::int32_t bins = static_cast<std::int32_t>(task.bins);
  const std::uint32_t budget = static_cast<std::uint32_t>(problem.budget);
  const SortTables tables(shared, bins, batch_rows * static_cast<std::int32_t>(budget));
  const std::int64_t first_bin = task.list * problem.block_rows;
  const EntryOutput output{entries, pairs, pair_stride, problem.first_row};
  // Within one list 32 bits count all entries: see kMaxSliceRows.
  const std::int64_t base = offsets[first_bin];
  const int warp = threadIdx.x / 32;
  const std::uint32_t lane = threadIdx.x % 32;
  const Places<kListed> places(problem);
  const std::int32_t part = batch_rows / kWarps;
  std::uint32_t* const rows = tables.rows + warp * tables.stride;
  std::uint16_t* const before = tables.before + warp * tables.stride;
  std::uint32_t* const counts = reinterpret_cast<std::uint32_t*>(before);
  std::uint16_t* const bin_of = tables.bin_of + warp * part * budget;
  for (int bin = threadIdx.x; bin < bins; bin += kThreads) {
    tables.place[bin] = static_cast<std::uint32_t>(offsets[first_bin + bin] - base) + task.counts[bin];
  }
  fill_zeros(tables.rows, kWarps * tables.stride * 4);
  for (std::int64_t batch = 0; batch < task.rows; batch += batch_rows) {
    fill_zeros(tables.before, kWarps * tables.stride * 2);
    __syncthreads();
    // Each warp's part of the rows: bins, and how often each. Two counts a word: a batch has fewer than 2^16 entries.
    const std::uint32_t part_rows =
        static_cast<std::uint32_t>(max(std::int64_t{0}, min(std::int64_t{part}, task.rows - batch - warp * part)));
    walk_list<false>(problem, places, task.list, task.first_row + batch + warp * part, part_rows, 0, bins,
                     [&](const std::int32_t(&listed)[kListed], std::uint32_t first_row) {
#pragma unroll
                       for (int u = 0; u < kListed; ++u) {
                         const std::int32_t bin = listed[u];
                         if (places.at[u] < (part_rows - first_row) << kSlotBits) {
                           bin_of[first_row * budget + 32 * u + lane] = static_cast<std::uint16_t>(bin);
                         }
                         if (bin >= 0) atomicAdd(counts + bin / 2, bin % 2 == 0 ? 1u : 0x10000u);
                       }
                     });
    __syncthreads();
    const std::uint32_t total = find_places(tables, bins);
    __syncthreads();
    for (std::uint32_t first_row = 0; first_row < part_rows; first_row += places.rows) {
      std::uint32_t bin[kListed], peers[kListed], start[kListed];
#pragma unroll
      for (int u = 0; u < kListed; ++u) {
        bin[u] = SortTables::kNoBin;
        if (places.at[u] < (part_rows - first_row) << kSlotBits) bin[u] = bin_of[first_row * budget + 32 * u + lane];
        if (bin[u] != SortTables::kNoBin) atomicOr(rows + bin[u], 1u << (places.at[u] >> kSlotBits));
      }
      __syncwarp();
#pragma unroll
      for (int u = 0; u < kListed; ++u) {
        const bool counts_here = bin[u] != SortTables::kNoBin;
        peers[u] = counts_here ? rows[bin[u]] : 0;
        start[u] = counts_here ? before[bin[u]] : 0;
      }
      __syncwarp();
#pragma unroll
      for (int u = 0; u < kListed; ++u) {
        if (bin[u] == SortTables::kNoBin) continue;
        const std::uint32_t earlier = peers[u] & ((1u << (places.at[u] >> kSlotBits)) - 1u);
        if (earlier == 0) {
          before[bin[u]] = static_cast<std::uint16_t>(start[u] + __popc(peers[u]));
          rows[bin[u]] = 0;
        }
        tables.sorted[start[u] + __popc(earlier)] =
            (bin[u] << kBinShift) + ((static_cast<std::uint32_t>(warp * part) + first_row) << kSlotBits) + places.at[u];
      }
      __syncwarp();
    }
    __syncthreads();
    const std::uint32_t first = static_cast<std::uint32_t>(task.first_row + batch) << kSlotBits;
    for (std::uint32_t i = threadIdx.x; i < total; i += kThreads) {
      const std::uint32_t word = tables.sorted[i];
      const std::int64_t to = base + (tables.shift[word >> kBinShift] + i);
      const std::uint32_t entry = first + (word & ((1u << kBinShift) - 1u));
      output.put(to, entry);
    }
  }
}

}  // namespace

void launch_invert_count(cudaStream_t stream, const InvertProblem& problem) {
  const dim3 grid = walk_grid(problem, kCountWindow);
  if (grid.x == 0 || grid.y == 0) return;
  const std::int64_t shared_bytes = std::min(kCountWindow, problem.block_rows) * 4;
  dispatch_listed(problem.budget, [&]<int kListed>() {
    launch_dependent(invert_count_kernel<kListed>, "invert_count_kernel", grid, kThreads, shared_bytes, stream,
                     problem);
  });
}

void launch_invert_scan(cudaStream_t stream, const InvertProblem& problem, std::int64_t item_rows,
                        std::int64_t* offsets, std::int32_t* first_item) {
  const std::int64_t bins = problem.lists * problem.block_rows;
  // So many counts one block of threads sums in the time of a second launch.
  constexpr std::int64_t kFewCounts = 16 * kScanThreads;
  const bool few = bins * problem.segments <= kFewCounts;
  if (!few) {
    const auto blocks = static_cast<unsigned>((bins + 31) / 32);
    launch_dependent(invert_columns_kernel, "invert_columns_kernel", blocks, 32 * kColumnWarps, 0, stream, problem);
  }
  const auto blocks = few ? 1u : static_cast<unsigned>((bins + kScanThreads - 1) / kScanThreads);
  launch_dependent(invert_offsets_kernel, "invert_offsets_kernel", blocks, kScanThreads, 0, stream, problem, few,
                   Divisor(item_rows), static_cast<std::int32_t>(item_rows - 1), offsets, first_item);
}

void launch_invert_scatter(cudaStream_t stream, const InvertProblem& problem, const std::int64_t* offsets,
                           std::uint32_t* entries, std::int32_t* pairs, std::int64_t pair_stride,
                           const ItemsProblem* items) {
  dim3 grid = walk_grid(problem, kMostTableBins);
  if (grid.x == 0 || grid.y == 0) return;
  // Among the first, so that they run beside all others; a few on each multiprocessor.
  constexpr std::int64_t kMostItemBlocks = 264;
  const std::int64_t bins = problem.lists * problem.block_rows;
  const int item_blocks =
      items == nullptr ? 0 : static_cast<int>(std::min(kMostItemBlocks, (bins + kWarps - 1) / kWarps));
  if (problem.block_rows > kMostTableBins) {
    launch_invert_sort(stream, problem, offsets, entries, pairs, pair_stride, items, item_blocks);
    return;
  }
  grid.x += static_cast<unsigned>(item_blocks);
  const std::int64_t batch_rows = batch_rows_for(problem);
  const std::int64_t shared_bytes =
      SortTables::bytes(std::min(kMostTableBins, problem.block_rows), batch_rows * problem.budget);
  dispatch_listed(problem.budget, [&]<int kListed>() {
    launch_dependent(invert_scatter_kernel<kListed>, "invert_scatter_kernel", grid, kThreads, shared_bytes, stream,
                     problem, static_cast<std::int32_t>(batch_rows), offsets, entries, pairs, pair_stride,
                     items == nullptr ? ItemsProblem{} : *items, item_blocks);
  });
}

}  // namespace moba::cuda
