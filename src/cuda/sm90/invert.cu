// invert: row -> blocks into block -> rows by counting, in row order, without a sort. Each warp owns a run of rows (a
// segment) and a histogram of its own in shared memory, so that order needs no atomics: count, sum over the segments,
// then walk the rows once more and put each at its place.
#include <algorithm>

#include "cuda/cuda_check.h"
#include "cuda/launch.h"
#include "cuda/sm90/block_scan.cuh"
#include "cuda/sm90/sequence_lookup.cuh"

namespace moba::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
// Counters of one warp: 18 KB, so that four warps fit a block and three blocks a multiprocessor. A batch with more
// block rows is walked once for each window of them.
constexpr std::int64_t kWindow = 4608;
constexpr int kWarps = 4;
// Loads of a lane under way at a time: the walk is a chain of short steps, and one load each would leave it waiting.
constexpr int kAhead = 8;

/// What a lane knows of its row, kept while rows go up: the own block does not change before `limit`.
struct RowRun {
  std::uint32_t limit = 0;  // rows of the segment
  std::int32_t own = 0;     // own block; 0 where no block is past
  std::int32_t first_bin = 0;
};

__device__ __forceinline__ RowRun run_of_row(const InvertProblem& problem, std::int64_t first, std::uint32_t row) {
  const std::int64_t packed = problem.first_row + first + row;
  const std::int64_t s = sequence_of_row(problem.sequences, problem.sequence_count, packed);
  if (s < 0) return {row + 1, 0, 0};
  const SequenceSpan sequence = problem.sequences[s];
  const std::int64_t position = packed - sequence.q_begin + sequence.k_length - sequence.q_length;
  const std::int64_t own = position < 0 ? 0 : position / problem.block_size;
  const std::int64_t to_next =
      min((own + 1) * problem.block_size - position, sequence.q_begin + sequence.q_length - packed);
  return {row + static_cast<std::uint32_t>(min(to_next, kMaxSliceRows)), static_cast<std::int32_t>(own),
          static_cast<std::int32_t>(sequence.k_begin / problem.block_size + s)};
}

/// Calls use(bin in the window, row of the slice, slot, valid) by all lanes together, in order of (row, slot), for the
/// entries of a segment. `bin` is -1 where not valid: padding, an entry that may not be attended, or one outside of the
/// window.
template <bool kReport, class Use>
__device__ __forceinline__ void walk_segment(const InvertProblem& problem, std::int64_t list, std::int64_t segment,
                                             std::int32_t window, Use&& use) {
  const std::uint32_t lane = threadIdx.x % 32, budget = static_cast<std::uint32_t>(problem.budget);
  const std::int64_t first = segment * problem.segment_rows;
  const std::int64_t rows = min(problem.segment_rows, problem.rows - first);
  if (rows <= 0) return;
  const std::uint32_t count = static_cast<std::uint32_t>(rows) * budget;  // below 2^32: see kMaxSliceRows
  const std::int32_t* lists = problem.list + first * problem.row_stride + list * problem.list_stride;
  const std::uint32_t step_rows = 32 / budget, step_slots = 32 % budget;
  const auto advance = [&](std::uint32_t& row, std::uint32_t& slot) {
    row += step_rows;
    slot += step_slots;
    if (slot >= budget) {
      slot -= budget;
      ++row;
    }
  };
  std::uint32_t row = lane / budget, slot = lane % budget;
  std::uint32_t load_row = row, load_slot = slot;
  RowRun run;
  std::int32_t carry = -1;            // the entry before the step's first
  std::uint32_t bad_row = kAllLanes;  // the last row with an entry that breaks the rule
  for (std::uint32_t at = 0; at < count; at += 32 * kAhead) {
    std::int32_t ahead[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      ahead[u] = count - at > 32 * u + lane ? __ldg(lists + load_row * problem.row_stride + load_slot) : -1;
      advance(load_row, load_slot);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (count - at <= 32 * u) break;
      const std::int32_t block = ahead[u];
      std::int32_t before = __shfl_up_sync(kAllLanes, block, 1);
      if (lane == 0) before = carry;
      carry = __shfl_sync(kAllLanes, block, 31);
      if (row >= run.limit && block != -1) run = run_of_row(problem, first, row);
      // A list that ascends from its first slot is valid throughout; anything else is judged from its beginning.
      bool valid = block >= 0 && block < run.own;
      const bool plain = block == -1 || (valid && (slot == 0 || (before >= 0 && before < block)));
      if (__any_sync(kAllLanes, !plain || row == bad_row)) {
        const std::int32_t* row_list = lists + row * problem.row_stride;
        std::int32_t highest = -1;
        for (std::uint32_t s = 0; block != -1 && s < slot; ++s) {
          const std::int32_t other = row_list[s];
          if (other < run.own) highest = max(highest, other);
        }
        valid = valid && block > highest;
        if (kReport && !valid && block != -1 && problem.error_word != nullptr) {
          atomicOr(problem.error_word, static_cast<int>(kSelectionOutOfRange));
        }
        const std::uint32_t worst = __reduce_max_sync(kAllLanes, plain ? 0u : row + 1);
        if (worst != 0) bad_row = worst - 1;
      }
      std::int32_t bin = run.first_bin + block - window;
      valid = valid && static_cast<std::uint32_t>(bin) < static_cast<std::uint32_t>(kWindow);
      if (!valid) bin = -1;
      use(bin, static_cast<std::uint32_t>(first) + row, slot, valid);
      advance(row, slot);
    }
  }
}

struct WarpTask {
  std::int64_t list, segment, window;
  std::uint32_t* histogram;
  std::int64_t bins;  // of the window
};

__device__ __forceinline__ bool find_task(const InvertProblem& problem, std::uint32_t* shared, WarpTask& task) {
  const std::int64_t warp = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  // Lists first: neighbouring warps then read the same rows of the selection, whose lists share cache lines.
  task.list = warp % problem.lists;
  task.segment = warp / problem.lists;
  task.window = static_cast<std::int64_t>(blockIdx.y) * kWindow;
  task.bins = min(kWindow, problem.block_rows - task.window);
  task.histogram = shared + static_cast<std::int64_t>(threadIdx.x / 32) * min(kWindow, problem.block_rows);
  return task.segment < problem.segments;
}

__global__ void __launch_bounds__(32 * kWarps) invert_count_kernel(InvertProblem problem) {
  extern __shared__ std::uint32_t shared[];
  WarpTask task;
  if (!find_task(problem, shared, task)) return;
  const int lane = threadIdx.x % 32;
  for (std::int64_t bin = lane; bin < task.bins; bin += 32) task.histogram[bin] = 0;
  __syncwarp();
  walk_segment<true>(problem, task.list, task.segment, static_cast<std::int32_t>(task.window),
                     [&](std::int32_t bin, std::uint32_t, std::uint32_t, bool valid) {
                       if (valid) atomicAdd(task.histogram + bin, 1u);
                     });
  __syncwarp();
  std::uint32_t* counts =
      problem.counts + (task.list * problem.segments + task.segment) * problem.block_rows + task.window;
  for (std::int64_t bin = lane; bin < task.bins; bin += 32) counts[bin] = task.histogram[bin];
}

/// counts[list, :, bin] becomes its exclusive sum over the segments; totals[bin + 1] the whole sum.
__global__ void invert_columns_kernel(InvertProblem problem, std::int64_t* totals) {
  const std::int64_t bin = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (bin >= problem.lists * problem.block_rows) return;
  const std::int64_t list = bin / problem.block_rows, row = bin - list * problem.block_rows;
  std::uint32_t* counts = problem.counts + list * problem.segments * problem.block_rows + row;
  std::uint32_t sum = 0;
  constexpr int kAhead = 8;
  std::int64_t segment = 0;
  for (; segment + kAhead <= problem.segments; segment += kAhead) {
    std::uint32_t values[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) values[i] = counts[(segment + i) * problem.block_rows];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      counts[(segment + i) * problem.block_rows] = sum;
      sum += values[i];
    }
  }
  for (; segment < problem.segments; ++segment) {
    const std::uint32_t value = counts[segment * problem.block_rows];
    counts[segment * problem.block_rows] = sum;
    sum += value;
  }
  totals[bin + 1] = sum;
}

constexpr int kScanThreads = 1024;
constexpr int kScanEach = 8;

/// offsets[bin + 1] holds totals and becomes their inclusive sum; first_item likewise of the work items. One block.
__global__ void __launch_bounds__(kScanThreads)
    invert_offsets_kernel(std::int64_t bins, std::int64_t item_rows, bool goes_on, std::int64_t* offsets,
                          std::int32_t* first_item) {
  // Of the bins before.
  std::int64_t entries = goes_on ? offsets[0] : 0, items = goes_on && first_item != nullptr ? first_item[0] : 0;
  if (threadIdx.x == 0 && !goes_on) {
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

__global__ void __launch_bounds__(32 * kWarps)
    invert_scatter_kernel(InvertProblem problem, const std::int64_t* offsets, std::uint32_t* entries,
                          std::int32_t* pairs, std::int64_t pair_stride) {
  extern __shared__ std::uint32_t shared[];
  WarpTask task;
  if (!find_task(problem, shared, task)) return;
  const int lane = threadIdx.x % 32;
  const std::int64_t first_bin = task.list * problem.block_rows;
  // Within one list 32 bits count all entries: see kMaxSliceRows.
  const std::int64_t base = offsets[first_bin];
  const std::uint32_t* counts =
      problem.counts + (task.list * problem.segments + task.segment) * problem.block_rows + task.window;
  for (std::int64_t bin = lane; bin < task.bins; bin += 32) {
    task.histogram[bin] = static_cast<std::uint32_t>(offsets[first_bin + task.window + bin] - base) + counts[bin];
  }
  __syncwarp();
  walk_segment<false>(problem, task.list, task.segment, static_cast<std::int32_t>(task.window),
                      [&](std::int32_t bin, std::uint32_t row, std::uint32_t slot, bool valid) {
                        // Lanes with the same block take consecutive places, in the order of the lanes.
                        const unsigned peers = __match_any_sync(kAllLanes, bin);
                        const unsigned before = __popc(peers & ((1u << lane) - 1u));
                        const std::uint32_t place = valid ? task.histogram[bin] : 0;
                        __syncwarp();
                        if (valid && before == 0) task.histogram[bin] = place + __popc(peers);
                        __syncwarp();
                        if (!valid) return;
                        const std::int64_t to = base + place + before;
                        if (entries != nullptr) {
                          entries[to] = row << kSlotBits | slot;
                        } else {
                          pairs[to * pair_stride] = static_cast<std::int32_t>(problem.first_row + row);
                          pairs[to * pair_stride + 1] = static_cast<std::int32_t>(slot);
                        }
                      });
}

__global__ void work_items_kernel(std::int64_t bins, std::int64_t block_rows, std::int64_t item_rows,
                                  const std::int64_t* offsets, const std::int32_t* first_item, const BlockSpan* blocks,
                                  WorkItem* items) {
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

struct WalkGrid {
  dim3 blocks;
  std::size_t shared_bytes;
};

WalkGrid walk_grid(const InvertProblem& problem) {
  const std::int64_t warps = problem.lists * problem.segments;
  const std::int64_t windows = (problem.block_rows + kWindow - 1) / kWindow;
  return {dim3(static_cast<unsigned>((warps + kWarps - 1) / kWarps), static_cast<unsigned>(windows)),
          static_cast<std::size_t>(kWarps * std::min(kWindow, problem.block_rows)) * sizeof(std::uint32_t)};
}

template <class Kernel>
void allow_shared(Kernel* kernel) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(kWarps * kWindow * sizeof(std::uint32_t))),
             "cudaFuncSetAttribute(shared memory of invert)");
}

}  // namespace

void launch_invert_count(cudaStream_t stream, const InvertProblem& problem) {
  const WalkGrid grid = walk_grid(problem);
  if (grid.blocks.x == 0 || grid.blocks.y == 0) return;
  allow_shared(invert_count_kernel);
  invert_count_kernel<<<grid.blocks, 32 * kWarps, grid.shared_bytes, stream>>>(problem);
  check_cuda(cudaGetLastError(), "invert_count_kernel");
}

void launch_invert_scan(cudaStream_t stream, const InvertProblem& problem, std::int64_t item_rows, bool goes_on,
                        std::int64_t* offsets, std::int32_t* first_item) {
  const std::int64_t bins = problem.lists * problem.block_rows;
  constexpr int kThreads = 128;
  if (bins > 0) {
    invert_columns_kernel<<<static_cast<unsigned>((bins + kThreads - 1) / kThreads), kThreads, 0, stream>>>(problem,
                                                                                                            offsets);
    check_cuda(cudaGetLastError(), "invert_columns_kernel");
  }
  invert_offsets_kernel<<<1, kScanThreads, 0, stream>>>(bins, item_rows, goes_on, offsets, first_item);
  check_cuda(cudaGetLastError(), "invert_offsets_kernel");
}

void launch_invert_scatter(cudaStream_t stream, const InvertProblem& problem, const std::int64_t* offsets,
                           std::uint32_t* entries, std::int32_t* pairs, std::int64_t pair_stride) {
  const WalkGrid grid = walk_grid(problem);
  if (grid.blocks.x == 0 || grid.blocks.y == 0) return;
  allow_shared(invert_scatter_kernel);
  invert_scatter_kernel<<<grid.blocks, 32 * kWarps, grid.shared_bytes, stream>>>(problem, offsets, entries, pairs,
                                                                                 pair_stride);
  check_cuda(cudaGetLastError(), "invert_scatter_kernel");
}

void launch_work_items(cudaStream_t stream, std::int64_t bins, std::int64_t block_rows, std::int64_t item_rows,
                       const std::int64_t* offsets, const std::int32_t* first_item, const BlockSpan* blocks,
                       WorkItem* items) {
  if (bins == 0) return;
  constexpr int kWarpsEach = 8;
  work_items_kernel<<<static_cast<unsigned>((bins + kWarpsEach - 1) / kWarpsEach), 32 * kWarpsEach, 0, stream>>>(
      bins, block_rows, item_rows, offsets, first_item, blocks, items);
  check_cuda(cudaGetLastError(), "work_items_kernel");
}

}  // namespace moba::cuda
