// score_select: the best past blocks of each row. Warpgroups hold 64 query rows each in registers; representatives
// stream through a ring in shared memory, 64 or 128 at a time; scores never leave the accumulators (see
// best_blocks.cuh).
#include <algorithm>

#include "cuda/cuda_check.h"
#include "cuda/dependent_launch.h"
#include "cuda/device/copy.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/instances.h"
#include "cuda/launch.h"
#include "cuda/sm90/best_blocks.cuh"
#include "cuda/sm90/best_eight.cuh"
#include "cuda/sm90/best_few.cuh"
#include "cuda/sm90/few_sequences.cuh"
#include "cuda/sm90/query_rows.cuh"
#include "cuda/sm90/row_tile.cuh"

namespace moba::cuda {
namespace {

constexpr int kGroupRows = 64;  // of a warpgroup
constexpr int kMostStages = 8;
constexpr int kItemSlots = 4;

/// Registers of threads that choose and of those that copy, of as many at launch as a multiprocessor has for all.
template <int kGroups>
struct Registers;
template <>
struct Registers<3> {
  static constexpr int kChoosing = 152, kCopying = 40;  // of 128
};
template <>
struct Registers<4> {
  static constexpr int kChoosing = 112, kCopying = 32;  // of 96
};

// What a block of threads may have on this architecture, less the barriers, few sequences and the alignment of the
// ring.
constexpr int kSharedBytes = 227 * 1024 - 3072;

struct Shape {
  int groups, stages, row_tiles;
  std::int32_t items;
  int k;  // slots that are left for free choice
};

/// By one warp. Rows that no sequence holds have an empty list; they lie between the end of one sequence and the begin
/// of the next.
__device__ void clear_keyless_rows(const SelectProblem& problem, const SequenceSpan* sequences) {
  for (std::int64_t s = blockIdx.x; s <= problem.batch.count; s += gridDim.x) {
    const std::int64_t begin = s == 0 ? 0 : sequences[s - 1].q_begin + sequences[s - 1].q_length;
    const std::int64_t end = s == problem.batch.count ? problem.rows : sequences[s].q_begin;
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t at = threadIdx.x % 32; at < problem.lists * problem.budget; at += 32) {
        problem.blocks[row * problem.row_stride + at / problem.budget * problem.list_stride + at % problem.budget] = -1;
      }
    }
  }
}

/// Copies a tile of representatives, which lies in shared memory as copy_tile() would leave it.
template <int kColumns, int kDim>
__device__ __forceinline__ void copy_columns(std::uint8_t* stage, const SelectProblem& problem, Barrier* barrier,
                                             std::int32_t block_row, int kv) {
#pragma unroll
  for (int panel = 0; panel < kDim / kPanelColumns; ++panel) {
#pragma unroll
    for (int first = 0; first < kColumns; first += kSelectBoxRows) {
      copy_box(stage + (panel * kColumns + first) * kPanelRowBytes, &problem.representatives, barrier,
               panel * kPanelColumns, block_row + first, kv);
    }
  }
}

/// What the copying warp tells the warpgroups of an item; list < 0: there are no more.
struct Item {
  RowTile tile;
  std::int32_t list;
};

/// Chooser: BestFew, BestEight or BestBlocks.
template <class T, int kDim, class Chooser>
__global__ void __launch_bounds__((Chooser::kGroups + 1) * 128, 1)
    select_kernel(const __grid_constant__ SelectProblem problem, const Shape shape) {
  extern __shared__ std::uint8_t raw[];
  __shared__ Barrier full[kMostStages], empty[kMostStages], item_full[kItemSlots], item_empty[kItemSlots];
  __shared__ Item items[kItemSlots];
  __shared__ SequenceSpan few[kFewSequences + 1];
  constexpr int kColumns = Chooser::kColumns, kStageBytes = kColumns * kDim * 2;
  std::uint8_t* const ring = &first_panel<std::uint8_t>(raw);
  std::uint8_t* const stages = ring + shape.stages * kStageBytes;  // of scores, one of each warp
  std::uint8_t* const queues = stages + 4 * shape.groups * kWarpStageBytes;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    const std::uint32_t warps = static_cast<std::uint32_t>(4 * shape.groups);
    for (int stage = 0; stage < shape.stages; ++stage) {
      full[stage].init(1);
      empty[stage].init(warps);
    }
    for (int slot = 0; slot < kItemSlots; ++slot) {
      item_full[slot].init(1);
      item_empty[slot].init(warps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  wait_for_launches_before();

  const int tile_rows = shape.groups * kGroupRows;
  const int heads_of_list = static_cast<int>(problem.heads / problem.lists);
  const int heads_of_kv = static_cast<int>(problem.heads / problem.kv_heads);
  const int inner_heads = min(heads_of_list, heads_of_kv);  // query heads of one list and one key/value head
  const int kv_of_list = heads_of_list / inner_heads;
  int stage = 0;
  std::uint32_t parity = 0;
  const auto advance = [&] {
    if (++stage == shape.stages) {
      stage = 0;
      parity ^= 1u;
    }
  };
  RingPlace<kItemSlots> slot;

  if (warp >= 4 * shape.groups) {
    give_registers<Registers<Chooser::kGroups>::kCopying>();
    // Of the four warps here, one copies and one clears.
    const SequenceSpan* sequences = problem.batch.table;
    if (sequences == nullptr && warp <= 4 * shape.groups + 1) {
      constexpr int kBarrier = 1;
      if (warp == 4 * shape.groups) few[lane] = span_of_lane(problem.batch, blockIdx.x == 0);
      named_sync(kBarrier, 64);
      sequences = few;
    }
    if (warp == 4 * shape.groups + 1) clear_keyless_rows(problem, sequences);
    if (warp == 4 * shape.groups) {
      if (lane == 0) prefetch_map(&problem.representatives);
      // The last rows have the most past, so tiles go from the last to the first: the longest items begin first.
      const std::uint32_t lists = static_cast<std::uint32_t>(problem.lists);
      for (std::uint32_t item = blockIdx.x;; item += gridDim.x) {
        const bool more = item < static_cast<std::uint32_t>(shape.items);
        const int list = static_cast<int>(item % lists);
        RowTile tile{};
        if (more)
          tile =
              find_tile(problem, sequences, shape.row_tiles - 1 - static_cast<int>(item / lists), tile_rows, kColumns);
        if (more && tile.first_row >= tile.end_row) continue;
        item_empty[slot.stage].wait(slot.parity ^ 1u);
        if (lane == 0) {
          items[slot.stage] = {tile, more ? list : -1};
          item_full[slot.stage].arrive();
        }
        slot.advance();
        if (!more) break;
        if (shape.k == 0) continue;
        prefetch_rows<T, kDim>(problem, tile, list * heads_of_list, heads_of_list);
        if (lane == 0) {
          const int first_kv = list * heads_of_list / heads_of_kv;
          for (int column_tile = 0; column_tile < tile.column_tiles; ++column_tile) {
            for (int kv = first_kv; kv < first_kv + kv_of_list; ++kv) {
              empty[stage].wait(parity ^ 1u);
              full[stage].arrive_expecting(kStageBytes);
              copy_columns<kColumns, kDim>(ring + stage * kStageBytes, problem, &full[stage],
                                           tile.first_block_row + column_tile * kColumns, kv);
              advance();
            }
          }
        }
        __syncwarp();  // the other lanes stay with the one that waits
      }
    }
  } else {
    take_registers<Registers<Chooser::kGroups>::kChoosing>();
    const int group = warp / 4, thread = threadIdx.x % 128;
    const std::uint32_t my_queues = shared_address(queues) + group * Chooser::queue_bytes(shape.k);
    const std::uint32_t my_stage = shared_address(stages) + warp * kWarpStageBytes;
    const auto next_item = [&] {
      item_full[slot.stage].wait(slot.parity);
      const Item item = items[slot.stage];
      item_empty[slot.stage].arrive_by_warp();
      slot.advance();
      return item;
    };
    const auto first_row = [&](const Item& item) { return item.tile.first_row + group * kGroupRows + warp % 4 * 16; };
    const auto scores_any = [&](const Item& item) {
      return shape.k > 0 && item.list >= 0 && item.tile.column_tiles > 0;
    };
    const auto fetch = [&](const Item& item) {
      if (heads_of_list > 1 || !scores_any(item)) return;
      fetch_rows<T, kDim>(my_stage, problem, first_row(item), item.tile.end_row, item.list);
    };
    Item item = next_item();
    fetch(item);
    while (item.list >= 0) {
      const RowTile& tile = item.tile;
      const std::int32_t row = first_row(item) + lane / 4;  // and row + 8
      const RowPast past[2] = {past_of(problem, tile, row), past_of(problem, tile, row + 8)};
      int counts[2] = {0, 0};
      std::int32_t* const lists = problem.blocks + row * problem.row_stride + item.list * problem.list_stride;
      Item next;
      if (scores_any(item)) {
        TileColumns columns;
        const int least_end = __reduce_min_sync(kAllLanes, min(past[0].end, past[1].end));
        const int most_end = __reduce_max_sync(kAllLanes, max(past[0].end, past[1].end));
        const int first_head = item.list * heads_of_list;
        // Zeros, though products overwrite both: what has no value yet would hold its registers all over the kernel.
        std::uint32_t query[kDim / 4] = {};
        float scores[kColumns / 2] = {};
        if (heads_of_list == 1) take_rows<kDim>(query, my_stage);
        Chooser best;
        best.start(my_queues, my_stage + lane * kStagedBytes, thread, shape.k);
        for (int column_tile = 0; column_tile < tile.column_tiles; ++column_tile) {
          if (best.settles(column_tile)) {
            best.settle();
#pragma unroll
            for (float& score : scores) score = 0.0f;
          }
          for (int kv = 0; kv < kv_of_list; ++kv) {
            full[stage].wait(parity);
            const std::uint64_t tile_b = tile_descriptor<Major::K>(ring + stage * kStageBytes, kColumns);
            for (int inner = 0; inner < inner_heads; ++inner) {
              if (heads_of_list > 1) {
                load_rows<T, kDim>(query, problem, row, tile.end_row, first_head + kv * inner_heads + inner);
              }
              hold_registers(query);
              hold_registers(scores);
              wgmma_fence();
              wgmma_tiles<T, kColumns, kDim / 16, Major::K>(scores, query, tile_b, kColumns, kv + inner > 0);
              wgmma_commit();
              wgmma_wait<0>();
              hold_registers(scores);
              hold_registers(query);
            }
            empty[stage].arrive_by_warp();
            advance();
          }
          const int first_column = column_tile * kColumns;
          if (first_column >= most_end) continue;  // no row of this warp
          columns.first = first_column + 2 * (lane % 4);
          columns.count = most_end - first_column;
          columns.whole = first_column + kColumns <= least_end && first_column >= problem.sinks;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            columns.begin[i] = past[i].sinks - columns.first;
            columns.end[i] = past[i].end - columns.first;
          }
          best.take(scores, columns, column_tile);
        }
        // The rows of the next item come while this one is finished.
        next = next_item();
        fetch(next);
        best.finish(counts, [&](int i, int place, std::int32_t column) {
          const RowPast& mine = i == 0 ? past[0] : past[1];
          lists[8 * i * problem.row_stride + mine.sinks + place] = column;
        });
      } else {
        next = next_item();
        fetch(next);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (row + 8 * i >= tile.end_row) continue;
        // Forced blocks and padding: each lane of the quad writes every fourth place.
        const RowPast& mine = past[i];
        if (counts[i] == problem.budget) continue;  // no sinks, then
        for (int place = lane % 4; place < problem.budget; place += 4) {
          const int after = mine.sinks + counts[i];
          std::int32_t block = -1;
          if (place < mine.sinks) {
            block = place;
          } else if (place < after) {
            continue;
          } else if (place == after && mine.end < mine.past) {
            block = mine.end;
          }
          lists[8 * i * problem.row_stride + place] = block;
        }
      }
      item = next;
    }
  }
}

/// Shared memory beside the ring: queues, and the scores of the warps.
template <class Chooser>
int group_bytes(int k) {
  return Chooser::queue_bytes(k) + 4 * kWarpStageBytes;
}

/// As many warpgroups and stages as fit: queues grow with k.
template <class Chooser>
Shape shape_of(const SelectProblem& problem, int k) {
  Shape shape{};
  shape.k = k;
  const int stage_bytes = Chooser::kColumns * static_cast<int>(problem.head_dim) * 2;
  constexpr int kFewestStages = 2;
  shape.groups =
      std::clamp((kSharedBytes - kFewestStages * stage_bytes) / group_bytes<Chooser>(k), 1, Chooser::kGroups);
  shape.stages =
      std::clamp((kSharedBytes - shape.groups * group_bytes<Chooser>(k)) / stage_bytes, kFewestStages, kMostStages);
  const std::int64_t tile_rows = shape.groups * kGroupRows;
  shape.row_tiles = static_cast<int>(problem.rows / tile_rows + problem.batch.count);
  shape.items = static_cast<std::int32_t>(shape.row_tiles * problem.lists);
  return shape;
}

template <class Chooser>
void launch(cudaStream_t stream, DType dtype, const SelectProblem& problem, int k) {
  const Shape shape = shape_of<Chooser>(problem, k);
  const int shared_bytes = shape.stages * Chooser::kColumns * static_cast<int>(problem.head_dim) * 2 +
                           shape.groups * group_bytes<Chooser>(k) + kPanelAlignment;
  const unsigned blocks = static_cast<unsigned>(std::clamp<std::int64_t>(shape.items, 1, multiprocessors()));
  dispatch_instance(dtype, problem.head_dim, [&]<class T, int kDim>() {
    launch_dependent(select_kernel<T, kDim, Chooser>, "select_kernel", blocks,
                     static_cast<unsigned>(shape.groups * 128 + 128), shared_bytes, stream, problem, shape);
  });
}

}  // namespace

void launch_select(cudaStream_t stream, DType dtype, const SelectProblem& problem) {
  if (problem.rows == 0 || problem.lists == 0 || problem.budget == 0) return;
  const std::int32_t sinks = std::min(problem.sinks, problem.budget);
  const int k = std::max(0, problem.budget - sinks - (problem.force_previous ? 1 : 0));
  if (k <= kFew) {
    launch<BestFew>(stream, dtype, problem, k);
  } else if (k <= kSorted) {
    launch<BestEight>(stream, dtype, problem, k);
  } else {
    launch<BestBlocks>(stream, dtype, problem, k);
  }
}

}  // namespace moba::cuda
