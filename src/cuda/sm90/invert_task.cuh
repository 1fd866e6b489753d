// What the kernels of invert share: the part of a block of threads, and the work items that are listed beside.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/launch.h"
#include "cuda/sm90/list_walk.cuh"

namespace moba::cuda {

/// What a block of threads works on.
struct Task {
  std::int64_t list, window;
  std::int64_t bins;             // of the window
  std::int64_t first_row, rows;  // of the segment, in the slice
  std::uint32_t* counts;         // of the segment, at the window's first bin
};

template <std::int64_t kWindow>
__device__ __forceinline__ Task find_task(const InvertProblem& problem, std::uint32_t number) {
  Task task;
  // Lists first: neighbours then read the same rows of the selection, whose lists share cache lines.
  const std::uint32_t lists = static_cast<std::uint32_t>(problem.lists), segment = number / lists;
  task.list = number - segment * lists;
  task.window = static_cast<std::int64_t>(blockIdx.y) * kWindow;
  task.bins = min(kWindow, problem.block_rows - task.window);
  task.first_row = segment * problem.segment_rows;
  task.rows = min(problem.segment_rows, problem.rows - task.first_row);
  task.counts = problem.counts + (task.list * problem.segments + segment) * problem.block_rows + task.window;
  return task;
}

/// By the first `blocks` blocks of threads of the grid: the work items of all bins, a warp for one at a time. A block
/// of keys that every row chose has as many items as all others together.
template <int kWarps>
__device__ void list_items(const ItemsProblem& problem, std::int64_t bins, std::int64_t block_rows,
                           const std::int64_t* offsets, int blocks) {
  const int lane = threadIdx.x % 32;
  for (std::int64_t bin = blockIdx.x * kWarps + threadIdx.x / 32; bin < bins; bin += blocks * kWarps) {
    const std::int64_t begin = offsets[bin], end = offsets[bin + 1];
    const std::int64_t list = bin / block_rows;
    const std::int32_t block_row = static_cast<std::int32_t>(bin - list * block_rows);
    const BlockSpan block = problem.blocks[block_row];
    std::int64_t at = begin + lane * problem.item_rows;
    for (std::int64_t i = problem.first_item[bin] + lane; at < end; i += 32, at += 32 * problem.item_rows) {
      problem.items[i] = {at,
                          block.first_key,
                          static_cast<std::int32_t>(min(problem.item_rows, end - at)),
                          block.keys,
                          static_cast<std::int32_t>(list),
                          block_row};
    }
  }
}

/// Where the scatter puts entries: words, or pairs {row, slot} of whole calls where `words` is null.
struct EntryOutput {
  std::uint32_t* words;
  std::int32_t* pairs;
  std::int64_t pair_stride;
  std::int64_t first_row;  // of the slice

  __device__ __forceinline__ void put(std::int64_t to, std::uint32_t entry) const {
    if (words != nullptr) {
      words[to] = entry;
    } else {
      pairs[to * pair_stride] = static_cast<std::int32_t>(first_row + (entry >> kSlotBits));
      pairs[to * pair_stride + 1] = static_cast<std::int32_t>(entry & ((1u << kSlotBits) - 1u));
    }
  }
};

inline dim3 walk_grid(const InvertProblem& problem, std::int64_t window) {
  return dim3(static_cast<unsigned>(problem.lists * problem.segments),
              static_cast<unsigned>((problem.block_rows + window - 1) / window));
}

/// launch_invert_scatter() for thousands of block rows; the first `item_blocks` blocks of threads list the items.
void launch_invert_sort(cudaStream_t stream, const InvertProblem& problem, const std::int64_t* offsets,
                        std::uint32_t* entries, std::int32_t* pairs, std::int64_t pair_stride,
                        const ItemsProblem* items, int item_blocks);

/// Calls launch with the entries of a lane at a time as a constant: as many as 32 rows have, up to eight.
template <class Launch>
void dispatch_listed(std::int64_t budget, Launch&& launch) {
  if (budget <= 2) {
    launch.template operator()<2>();
  } else if (budget <= 4) {
    launch.template operator()<4>();
  } else {
    launch.template operator()<8>();
  }
}

}  // namespace moba::cuda
