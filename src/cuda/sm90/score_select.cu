// score_select: the best past blocks of each row. Warpgroups hold 64 query rows each in registers; representatives
// stream through a ring in shared memory, 128 at a time; scores never leave the accumulators (see best_blocks.cuh).
#include <algorithm>

#include "cuda/cuda_check.h"
#include "cuda/device/wgmma.cuh"
#include "cuda/instances.h"
#include "cuda/launch.h"
#include "cuda/sm90/best_blocks.cuh"

namespace moba::cuda {
namespace {

constexpr int kGroupRows = 64;  // of a warpgroup
constexpr int kMostGroups = 3;
constexpr int kMostStages = 4;
// Of 128 a thread at launch: three warpgroups that choose and one that copies.
constexpr int kConsumerRegisters = 152, kProducerRegisters = 40;
// What a block of threads may have on this architecture, less the barriers and the alignment of the ring.
constexpr int kSharedBytes = 227 * 1024 - 2048;

/// Rows of one item, all of one sequence, and what is past for them. 32 bits hold every token and block, and their
/// divisions are several times as fast as those of 64 bits.
struct RowTile {
  std::int32_t first_row = 0, end_row = 0;  // packed
  std::int32_t shift = 0;                   // position - row
  std::int32_t first_block_row = 0;
  std::int32_t column_tiles = 0;  // tiles of representatives that any row of the item needs
};

/// Tile t of the packed rows: tile i of sequence s has the number q_begin / rows + s + i, as block rows have.
__device__ __forceinline__ RowTile find_tile(const SelectProblem& problem, std::int32_t tile, std::int32_t rows) {
  const auto first_tile = [&](std::int32_t s) {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(problem.sequences[s].q_begin) / rows) + s;
  };
  std::int32_t low = 0, high = static_cast<std::int32_t>(problem.sequence_count);
  while (low < high) {
    const std::int32_t middle = low + (high - low) / 2;
    if (first_tile(middle) <= tile) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  RowTile result;
  if (low == 0) return result;
  const SequenceSpan sequence = problem.sequences[low - 1];
  const std::int64_t at = static_cast<std::int64_t>(tile - first_tile(low - 1)) * rows;
  if (at >= sequence.q_length) return result;
  result.first_row = static_cast<std::int32_t>(sequence.q_begin + at);
  result.end_row = static_cast<std::int32_t>(min(sequence.q_begin + at + rows, sequence.q_begin + sequence.q_length));
  result.shift = static_cast<std::int32_t>(sequence.k_length - sequence.q_length - sequence.q_begin);
  result.first_block_row =
      static_cast<std::int32_t>(static_cast<std::uint32_t>(sequence.k_begin) / problem.block_size) + low - 1;
  const std::int32_t last = result.end_row - 1 + result.shift;
  const std::int32_t past =
      last < 0 ? 0 : static_cast<std::int32_t>(static_cast<std::uint32_t>(last) / problem.block_size);
  result.column_tiles = past > problem.sinks ? (past + kSelectColumns - 1) / kSelectColumns : 0;
  return result;
}

struct Shape {
  int groups, stages, row_tiles;
  std::int32_t items;
  int k;  // slots that are left for free choice
};

/// The past blocks of one row: sinks [0, sinks), candidates [sinks, end), and `end` itself where forced.
struct RowPast {
  std::int32_t sinks = 0, end = 0, past = 0;
};

__device__ __forceinline__ RowPast past_of(const SelectProblem& problem, const RowTile& tile, std::int32_t row) {
  RowPast result;
  const std::int32_t position = row + tile.shift;
  if (row >= tile.end_row || position < 0) return result;
  result.past = static_cast<std::int32_t>(static_cast<std::uint32_t>(position) / problem.block_size);
  result.sinks = min(problem.sinks, result.past);
  result.end = result.past - (problem.force_previous && result.past > result.sinks ? 1 : 0);
  return result;
}

/// The two rows of each thread as the register operand of the product; zeros for rows behind the end.
template <class T, int kDim>
__device__ __forceinline__ void load_rows(std::uint32_t (&words)[kDim / 4], const SelectProblem& problem,
                                          std::int64_t row, std::int64_t end_row, int head) {
  const T* base = static_cast<const T*>(problem.q) + row * problem.q_row_stride + head * problem.q_head_stride +
                  2 * (threadIdx.x % 4);
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        words[4 * step + 2 * half + i] = row + 8 * i < end_row
                                             ? __ldg(reinterpret_cast<const std::uint32_t*>(
                                                   base + 8 * i * problem.q_row_stride + 16 * step + 8 * half))
                                             : 0u;
      }
    }
  }
}

/// Brings the query rows of an item into the L2 cache. The copying warp is a ring ahead of the warpgroups, which then
/// wait for the cache and not for memory.
template <class T, int kDim>
__device__ __forceinline__ void prefetch_rows(const SelectProblem& problem, const RowTile& tile, int first_head,
                                              int heads) {
  constexpr int kLines = kDim * 2 / 128;  // of a row
  const int lane = threadIdx.x % 32, count = (tile.end_row - tile.first_row) * kLines;
  for (int head = first_head; head < first_head + heads; ++head) {
    const T* base =
        static_cast<const T*>(problem.q) + tile.first_row * problem.q_row_stride + head * problem.q_head_stride;
    for (int line = lane; line < count; line += 32) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(base + line / kLines * problem.q_row_stride + line % kLines * 64));
    }
  }
}

/// Rows that no sequence holds have an empty list; they lie between the end of one sequence and the begin of the next.
__device__ void clear_keyless_rows(const SelectProblem& problem) {
  for (std::int64_t s = blockIdx.x; s <= problem.sequence_count; s += gridDim.x) {
    const std::int64_t begin = s == 0 ? 0 : problem.sequences[s - 1].q_begin + problem.sequences[s - 1].q_length;
    const std::int64_t end = s == problem.sequence_count ? problem.rows : problem.sequences[s].q_begin;
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t at = threadIdx.x; at < problem.lists * problem.budget; at += blockDim.x) {
        problem.blocks[row * problem.row_stride + at / problem.budget * problem.list_stride + at % problem.budget] = -1;
      }
    }
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__((kMostGroups + 1) * 128, 1)
    select_kernel(const __grid_constant__ SelectProblem problem, const Shape shape) {
  extern __shared__ std::uint8_t raw[];
  __shared__ Barrier full[kMostStages], empty[kMostStages];
  constexpr int kStageBytes = kSelectColumns * kDim * 2;
  constexpr int kSwizzleAtom = 1024;
  std::uint8_t* const ring = raw + (kSwizzleAtom - shared_address(raw) % kSwizzleAtom) % kSwizzleAtom;
  std::uint8_t* const queues = ring + shape.stages * kStageBytes;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < shape.stages; ++stage) {
      full[stage].init(1);
      empty[stage].init(static_cast<std::uint32_t>(4 * shape.groups));
    }
    fence_barrier_init();
  }
  __syncthreads();
  clear_keyless_rows(problem);

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

  // The last rows have the most past, so tiles go from the last to the first: the longest items begin first.
  const auto for_each_item = [&](auto&& use) {
    const std::uint32_t lists = static_cast<std::uint32_t>(problem.lists);
    for (std::uint32_t item = blockIdx.x; item < static_cast<std::uint32_t>(shape.items); item += gridDim.x) {
      const int list = static_cast<int>(item % lists);
      const RowTile tile = find_tile(problem, shape.row_tiles - 1 - static_cast<int>(item / lists), tile_rows);
      if (tile.first_row < tile.end_row) use(tile, list);
    }
  };

  if (warp >= 4 * shape.groups) {
    give_registers<kProducerRegisters>();
    if (warp == 4 * shape.groups && shape.k > 0) {
      if (lane == 0) prefetch_map(&problem.representatives);
      for_each_item([&](const RowTile& tile, int list) {
        prefetch_rows<T, kDim>(problem, tile, list * heads_of_list, heads_of_list);
        if (lane == 0) {
          const int first_kv = list * heads_of_list / heads_of_kv;
          for (int column_tile = 0; column_tile < tile.column_tiles; ++column_tile) {
            for (int kv = first_kv; kv < first_kv + kv_of_list; ++kv) {
              empty[stage].wait(parity ^ 1u);
              full[stage].arrive_expecting(kStageBytes);
              copy_tile<kSelectColumns, kDim>(ring + stage * kStageBytes, &problem.representatives, &full[stage],
                                              tile.first_block_row + column_tile * kSelectColumns, kv);
              advance();
            }
          }
        }
        __syncwarp();  // the other lanes stay with the one that waits
      });
    }
  } else {
    take_registers<kConsumerRegisters>();
    const int group = warp / 4, thread = threadIdx.x % 128;
    const std::uint32_t my_queues = shared_address(queues) + group * queue_bytes(shape.k);
    for_each_item([&](const RowTile& tile, int list) {
      const std::int32_t row = tile.first_row + group * kGroupRows + warp % 4 * 16 + lane / 4;  // and row + 8
      const RowPast past[2] = {past_of(problem, tile, row), past_of(problem, tile, row + 8)};
      int counts[2] = {0, 0};
      std::int32_t* const lists = problem.blocks + row * problem.row_stride + list * problem.list_stride;
      if (shape.k > 0 && tile.column_tiles > 0) {
        const int least_end = __reduce_min_sync(kAllLanes, min(past[0].end, past[1].end));
        const int most_end = __reduce_max_sync(kAllLanes, max(past[0].end, past[1].end));
        const int first_head = list * heads_of_list;
        std::uint32_t query[kDim / 4];
        if (heads_of_list == 1) load_rows<T, kDim>(query, problem, row, tile.end_row, first_head);
        BestBlocks best;
        best.start(my_queues, thread, shape.k);
        for (int column_tile = 0; column_tile < tile.column_tiles; ++column_tile) {
          float scores[kSelectColumns / 2];
          for (int kv = 0; kv < kv_of_list; ++kv) {
            full[stage].wait(parity);
            const std::uint64_t tile_b = tile_descriptor<Major::K>(ring + stage * kStageBytes, kSelectColumns);
            for (int inner = 0; inner < inner_heads; ++inner) {
              if (heads_of_list > 1) {
                load_rows<T, kDim>(query, problem, row, tile.end_row, first_head + kv * inner_heads + inner);
              }
              hold_registers(query);
              hold_registers(scores);
              wgmma_fence();
              wgmma_tiles<T, kSelectColumns, kDim / 16, Major::K>(scores, query, tile_b, kSelectColumns,
                                                                  kv + inner > 0);
              wgmma_commit();
              wgmma_wait<0>();
              hold_registers(scores);
              hold_registers(query);
            }
            __syncwarp();
            if (lane == 0) empty[stage].arrive();
            advance();
          }
          const int first_column = column_tile * kSelectColumns;
          if (first_column >= most_end) continue;  // no row of this warp
          const int column = first_column + 2 * (lane % 4);
          if (first_column + kSelectColumns > least_end || first_column < problem.sinks) {
            // Eight columns at a time, and only those that some row may not choose but take() looks at.
            const int padded = (most_end - first_column + 31) / 32 * 32;
#pragma unroll
            for (int j = 0; j < kSelectColumns / 8; ++j) {
              const bool all_past = first_column + 8 * j >= problem.sinks && first_column + 8 * j + 8 <= least_end;
              if (all_past || 8 * j >= padded) continue;
#pragma unroll
              for (int i = 4 * j; i < 4 * j + 4; ++i) {
                const int at = column + 8 * j + i % 2;
                const RowPast& mine = past[i / 2 % 2];
                if (at < mine.sinks || at >= mine.end) scores[i] = minus_infinity();
              }
            }
          }
          best.take(scores, column, most_end - first_column, column_tile == 0);
        }
        best.finish(counts, [&](int i, int place, std::int32_t column) {
          const RowPast& mine = i == 0 ? past[0] : past[1];
          lists[8 * i * problem.row_stride + mine.sinks + place] = column;
        });
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (row + 8 * i >= tile.end_row) continue;
        // Forced blocks and padding: each lane of the quad writes every fourth place.
        const RowPast& mine = past[i];
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
    });
  }
}

/// As many warpgroups and stages as fit: queues grow with k.
Shape shape_of(const SelectProblem& problem) {
  Shape shape{};
  const std::int32_t sinks = std::min(problem.sinks, problem.budget);
  shape.k = std::max(0, problem.budget - sinks - (problem.force_previous ? 1 : 0));
  const int stage_bytes = kSelectColumns * static_cast<int>(problem.head_dim) * 2;
  constexpr int kFewestStages = 2;
  shape.groups = std::clamp((kSharedBytes - kFewestStages * stage_bytes) / queue_bytes(shape.k), 1, kMostGroups);
  shape.stages =
      std::clamp((kSharedBytes - shape.groups * queue_bytes(shape.k)) / stage_bytes, kFewestStages, kMostStages);
  const std::int64_t tile_rows = shape.groups * kGroupRows;
  shape.row_tiles = static_cast<int>(problem.rows / tile_rows + problem.sequence_count);
  shape.items = static_cast<std::int32_t>(shape.row_tiles * problem.lists);
  return shape;
}

}  // namespace

void launch_select(cudaStream_t stream, DType dtype, const SelectProblem& problem) {
  if (problem.rows == 0 || problem.lists == 0 || problem.budget == 0) return;
  const Shape shape = shape_of(problem);
  const int shared_bytes = shape.stages * kSelectColumns * static_cast<int>(problem.head_dim) * 2 +
                           shape.groups * queue_bytes(shape.k) + 1024;
  const unsigned blocks = static_cast<unsigned>(std::clamp<std::int64_t>(shape.items, 1, multiprocessors()));
  dispatch_instance(dtype, problem.head_dim, [&]<class T, int kDim>() {
    check_cuda(cudaFuncSetAttribute(select_kernel<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
               "cudaFuncSetAttribute(shared memory of select)");
    select_kernel<T, kDim>
        <<<blocks, static_cast<unsigned>(shape.groups * 128 + 128), static_cast<std::size_t>(shared_bytes), stream>>>(
            problem, shape);
  });
  check_cuda(cudaGetLastError(), "select_kernel");
}

}  // namespace moba::cuda
