// Attention of gathered query rows over the past block that they chose.
//
// A work item is a block and some of the rows that chose it. Its rows are taken 128 at a time: one warpgroup gathers
// them with 16-byte copies and orders K and V of the block from the copy engine, two warpgroups multiply, 64 rows each.
// A block that fits one tile of keys stays in shared memory for all tiles of the item; a larger one streams through a
// ring once for every 128 rows, and the product S = Q K^T of one tile of keys runs beside O += P V of the one before.
#include <algorithm>

#include "cuda/attend.h"
#include "cuda/cuda_check.h"
#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/instances.h"

namespace moba::cuda {
namespace {

constexpr int kRows = 128;                           // query rows of a tile
constexpr int kConsumerWarps = 8;                    // two warpgroups
constexpr int kThreads = 128 + kConsumerWarps * 32;  // the producers first
constexpr int kQueryStages = 2;
constexpr int kKeyStages = 2;
constexpr int kProducerRegisters = 56;
constexpr int kConsumerRegisters = 224;  // 128 * 56 + 256 * 224 <= 65536

template <class T, int kDim, int kKeys>
struct HistoryStorage {
  alignas(1024) T q[kQueryStages][kRows * kDim];
  alignas(1024) T k[kKeyStages][kKeys * kDim];
  alignas(1024) T v[kKeyStages][kKeys * kDim];
  Barrier q_full[kQueryStages], q_empty[kQueryStages];
  Barrier k_full[kKeyStages], k_empty[kKeyStages];
  Barrier v_full[kKeyStages], v_empty[kKeyStages];
};

/// A work item for one key/value head.
struct Unit {
  WorkItem item;
  std::int32_t head;  // the first of its query heads
  std::int32_t kv_head;
  std::int64_t rows;  // entries times query heads
  std::int32_t row_tiles, key_tiles;

  __device__ __forceinline__ Unit(const HistoryArgs& args, std::int64_t index, int keys) {
    const HeadGroups& groups = args.groups;
    item = args.items[index / groups.units_per_list];
    const auto unit = static_cast<std::int32_t>(index % groups.units_per_list);
    head = (args.first_list + item.list) * groups.heads_per_list + unit * groups.heads_per_unit;
    kv_head = head / groups.heads_per_kv;
    rows = static_cast<std::int64_t>(item.count) * groups.heads_per_unit;
    row_tiles = static_cast<std::int32_t>((rows + kRows - 1) / kRows);
    key_tiles = (item.keys + keys - 1) / keys;
  }
};

/// One row of a tile: which packed row (from the slice's first), query head and slot.
struct Row {
  bool valid;
  std::uint32_t row, slot;
  std::int32_t head;

  __device__ __forceinline__ Row(const HistoryArgs& args, const Unit& unit, std::int64_t index) {
    valid = index < unit.rows;
    const std::int32_t group = args.groups.heads_per_unit;
    const auto position = static_cast<std::uint32_t>(valid ? index : 0);
    const std::uint32_t entry_index = group == 1 ? position : position / group;
    head = unit.head + static_cast<std::int32_t>(position - entry_index * group);
    const std::uint32_t entry = __ldg(args.entries + unit.item.begin + entry_index);
    row = entry >> kSlotBits;
    slot = entry & ((1u << kSlotBits) - 1u);
  }
};

/// The producer warpgroup gathers one tile of query rows; each lane looks one row up for its warp.
template <class T, int kDim>
__device__ __forceinline__ void gather_rows(const HistoryArgs& args, const Unit& unit, std::int64_t first_index,
                                            T* shared) {
  constexpr int kChunks = kDim / 8;          // of 16 bytes in a row
  constexpr int kRowsAtOnce = 32 / kChunks;  // by one warp
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Row mine(args, unit, first_index + warp * 32 + lane);
  const std::int64_t offset =
      mine.valid ? (args.partials.first_row + mine.row) * args.q_row_stride + mine.head * args.q_head_stride : -1;
  const int chunk = lane % kChunks;
  const std::uint32_t base = shared_address(shared);
#pragma unroll
  for (int step = 0; step < 32 / kRowsAtOnce; ++step) {
    const int row = step * kRowsAtOnce + lane / kChunks;
    const std::int64_t from = __shfl_sync(0xffffffffu, offset, row);
    const T* source = static_cast<const T*>(args.q) + (from < 0 ? 0 : from) + chunk * 8;
    copy_16_async(base + swizzled_offset(kRows, warp * 32 + row, chunk), source, from >= 0);
  }
}

template <class T, int kDim, int kKeys>
__device__ __forceinline__ void produce(const HistoryArgs& args, const CUtensorMap& k_map, const CUtensorMap& v_map,
                                        HistoryStorage<T, kDim, kKeys>& storage) {
  RingPlace<kQueryStages> q_place;
  RingPlace<kKeyStages> place;
  const bool orders = threadIdx.x == 0;
  const auto order_keys = [&](const Unit& unit, int tile) {
    if (orders) {
      constexpr std::uint32_t kBytes = kKeys * kDim * sizeof(T);
      const auto key = static_cast<int>(unit.item.first_key + static_cast<std::int64_t>(tile) * kKeys);
      storage.k_empty[place.stage].wait(place.parity ^ 1u);
      storage.k_full[place.stage].arrive_expecting(kBytes);
      copy_tile<kKeys, kDim>(storage.k[place.stage], &k_map, &storage.k_full[place.stage], key, unit.kv_head);
      storage.v_empty[place.stage].wait(place.parity ^ 1u);
      storage.v_full[place.stage].arrive_expecting(kBytes);
      copy_tile<kKeys, kDim>(storage.v[place.stage], &v_map, &storage.v_full[place.stage], key, unit.kv_head);
    }
    place.advance();
  };
  const std::int64_t units = static_cast<std::int64_t>(*args.item_count) * args.groups.units_per_list;
  for (std::int64_t index = blockIdx.x; index < units; index += gridDim.x) {
    const Unit unit(args, index, kKeys);
    const bool resident = unit.key_tiles == 1;
    if (resident) order_keys(unit, 0);
    for (int tile = 0; tile < unit.row_tiles; ++tile) {
      __syncwarp();
      storage.q_empty[q_place.stage].wait(q_place.parity ^ 1u);
      gather_rows<T, kDim>(args, unit, static_cast<std::int64_t>(tile) * kRows, storage.q[q_place.stage]);
      storage.q_full[q_place.stage].arrive_after_copies();
      q_place.advance();
      if (!resident) {
        for (int key_tile = 0; key_tile < unit.key_tiles; ++key_tile) order_keys(unit, key_tile);
      }
    }
  }
  copy_async_wait<0>();
}

/// Keys past the block's end give no probability, whatever they are.
template <int kKeys>
__device__ __forceinline__ void mask_tail(float (&scores)[kKeys / 2], int keys) {
  const int column = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (8 * j + column + c >= keys) {
        scores[4 * j + c] = minus_infinity();
        scores[4 * j + 2 + c] = minus_infinity();
      }
    }
  }
}

/// Values of another block, which may be NaN, must not meet the probabilities 0 of the masked keys. Both warpgroups
/// write the same zeros, each before its own product, so that neither waits for the other.
template <class T, int kDim, int kKeys>
__device__ __forceinline__ void clear_tail(T* v, int keys, int group) {
  constexpr int kChunks = kDim / 8;
  for (int i = threadIdx.x % 128; i < (kKeys - keys) * kChunks; i += 128) {
    const int offset = swizzled_offset(kKeys, keys + i / kChunks, i % kChunks);
    *reinterpret_cast<uint4*>(reinterpret_cast<char*>(v) + offset) = uint4{0, 0, 0, 0};
  }
  fence_async_proxy();
  named_sync(1 + group, 128);
}

/// Rows of the accumulator, scaled, to their places among the partial results.
template <class T, int kDim>
__device__ __forceinline__ void store_rows(const HistoryArgs& args, const Row (&rows)[2], float (&o)[kDim / 2],
                                           const float (&factor)[2], const float (&lse)[2]) {
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Partials& partials = args.partials;
    const std::int64_t place =
        (static_cast<std::int64_t>(rows[i].row) * partials.heads + (rows[i].head - partials.first_head)) *
            partials.budget +
        rows[i].slot;
    T* out = static_cast<T*>(partials.out) + place * kDim;
#pragma unroll
    for (int part = 0; part < kDim / 32; ++part) {
      std::uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = 4 * (4 * part + j) + 2 * i;
        words[j] = pack<T>(o[at] * factor[i], o[at + 1] * factor[i]);
      }
      quad_transpose(words);
      if (rows[i].valid) {
        *reinterpret_cast<uint4*>(out + part * 32 + lane * 8) = uint4{words[0], words[1], words[2], words[3]};
      }
    }
    // All bits set mean "no partial here"; a NaN of this kernel must not look like that.
    const float value = isnan(lse[i]) ? __int_as_float(0x7fffffff) : lse[i];
    if (rows[i].valid && lane == 0) partials.lse[place] = value;
  }
}

template <class T, int kDim, int kKeys>
__device__ __forceinline__ void consume(const HistoryArgs& args, HistoryStorage<T, kDim, kKeys>& storage) {
  RingPlace<kQueryStages> q_place;
  RingPlace<kKeyStages> k_place, v_place;
  const int group = threadIdx.x / 128 - 1;
  const int row_in_tile = group * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  const float scale_log2 = args.softmax_scale * kLog2E;
  const auto release = [](Barrier& barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier.arrive();
  };
  const std::int64_t units = static_cast<std::int64_t>(*args.item_count) * args.groups.units_per_list;
  for (std::int64_t index = blockIdx.x; index < units; index += gridDim.x) {
    const Unit unit(args, index, kKeys);
    const bool resident = unit.key_tiles == 1;
    const int tail = unit.item.keys - (unit.key_tiles - 1) * kKeys;  // keys of the last tile
    for (int tile = 0; tile < unit.row_tiles; ++tile) {
      const std::int64_t first = static_cast<std::int64_t>(tile) * kRows + row_in_tile;
      const Row rows[2] = {Row(args, unit, first), Row(args, unit, first + 8)};
      const bool keys_arrive = !resident || tile == 0, keys_leave = !resident || tile + 1 == unit.row_tiles;
      float scores[kKeys / 2], o[kDim / 2], shrink[2];
      std::uint32_t p[kKeys / 4];
      RowState state;

      const auto query_key = [&] {
        wgmma_fence();
        wgmma_tiles<T, kKeys, kDim / 16, Major::K, Major::K>(
            scores, tile_descriptor<Major::K>(storage.q[q_place.stage], kRows, group * 64), kRows,
            tile_descriptor<Major::K>(storage.k[k_place.stage], kKeys), kKeys, false);
        wgmma_commit();
      };
      const auto probability_value = [&](bool accumulate) {
        wgmma_fence();
        wgmma_tiles<T, kDim, kKeys / 16, Major::MN>(o, p, tile_descriptor<Major::MN>(storage.v[v_place.stage], kKeys),
                                                    kKeys, accumulate);
        wgmma_commit();
      };

      storage.q_full[q_place.stage].wait(q_place.parity);
      fence_async_proxy();  // the rows came through cp.async
      if (keys_arrive) storage.k_full[k_place.stage].wait(k_place.parity);
      query_key();
      wgmma_wait<0>();
      hold_registers(scores);
      if (keys_leave) {
        release(storage.k_empty[k_place.stage]);
        k_place.advance();
      }
      if (resident) {
        release(storage.q_empty[q_place.stage]);
        q_place.advance();
        if (tail < kKeys) mask_tail<kKeys>(scores, tail);
      }
      state.update<kKeys, true>(scores, scale_log2, shrink);
      pack_rows<T, kKeys>(p, scores);

      for (int key_tile = 1; key_tile < unit.key_tiles; ++key_tile) {
        const bool last = key_tile + 1 == unit.key_tiles;
        storage.k_full[k_place.stage].wait(k_place.parity);
        query_key();
        storage.v_full[v_place.stage].wait(v_place.parity);
        probability_value(key_tile > 1);
        wgmma_wait<1>();
        hold_registers(scores);
        release(storage.k_empty[k_place.stage]);
        k_place.advance();
        if (last) {
          release(storage.q_empty[q_place.stage]);
          q_place.advance();
          if (tail < kKeys) mask_tail<kKeys>(scores, tail);
        }
        state.update<kKeys, false>(scores, scale_log2, shrink);
        wgmma_wait<0>();
        hold_registers(o);
        release(storage.v_empty[v_place.stage]);
        v_place.advance();
        scale_rows<kDim>(o, shrink);
        pack_rows<T, kKeys>(p, scores);
      }

      if (keys_arrive) {
        storage.v_full[v_place.stage].wait(v_place.parity);
        if (tail < kKeys) clear_tail<T, kDim, kKeys>(storage.v[v_place.stage], tail, group);
      }
      probability_value(!resident);
      wgmma_wait<0>();
      hold_registers(o);
      if (keys_leave) {
        release(storage.v_empty[v_place.stage]);
        v_place.advance();
      }
      float factor[2], lse[2];
      state.finish(args.softmax_scale, factor, lse);
      store_rows<T, kDim>(args, rows, o, factor, lse);
    }
  }
}

template <class T, int kDim, int kKeys>
__global__ void __launch_bounds__(kThreads, 1)
    attend_history_kernel(const __grid_constant__ HistoryArgs args, const __grid_constant__ CUtensorMap k_map,
                          const __grid_constant__ CUtensorMap v_map) {
  extern __shared__ char shared[];
  auto& storage =
      *reinterpret_cast<HistoryStorage<T, kDim, kKeys>*>(shared + (1024 - shared_address(shared) % 1024) % 1024);
  if (threadIdx.x == 0) {
    prefetch_map(&k_map);
    prefetch_map(&v_map);
    for (int i = 0; i < kQueryStages; ++i) {
      storage.q_full[i].init(128);
      storage.q_empty[i].init(kConsumerWarps);
    }
    for (int i = 0; i < kKeyStages; ++i) {
      storage.k_full[i].init(1);
      storage.v_full[i].init(1);
      storage.k_empty[i].init(kConsumerWarps);
      storage.v_empty[i].init(kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<kProducerRegisters>();
    produce<T, kDim, kKeys>(args, k_map, v_map, storage);
  } else {
    take_registers<kConsumerRegisters>();
    consume<T, kDim, kKeys>(args, storage);
  }
}

template <class T, int kDim, int kKeys>
void launch(cudaStream_t stream, const HistoryArgs& args, const CUtensorMap& k_map, const CUtensorMap& v_map,
            std::int64_t max_units) {
  const auto kernel = attend_history_kernel<T, kDim, kKeys>;
  constexpr int kBytes = sizeof(HistoryStorage<T, kDim, kKeys>) + 1024;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
             "cudaFuncSetAttribute(attend_history_kernel)");
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(multiprocessors(), max_units));
  kernel<<<grid, kThreads, kBytes, stream>>>(args, k_map, v_map);
  check_cuda(cudaGetLastError(), "attend_history_kernel");
}

}  // namespace

int history_key_rows(std::int64_t block_size) {
  return block_size <= 64 ? 64 : 128;
}

void launch_attend_history(cudaStream_t stream, DType dtype, std::int64_t head_dim, const HistoryArgs& args,
                           const CUtensorMap& k_map, const CUtensorMap& v_map, std::int64_t max_units) {
  if (max_units == 0) return;
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    if (history_key_rows(args.block_size) == 64) {
      launch<T, kDim, 64>(stream, args, k_map, v_map, max_units);
    } else {
      launch<T, kDim, 128>(stream, args, k_map, v_map, max_units);
    }
  });
}

}  // namespace moba::cuda
