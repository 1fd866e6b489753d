// Attention of gathered query rows over the past block that they chose.
//
// A work item is a block and some of the rows that chose it. Its rows are taken 128 at a time: one warpgroup gathers
// them with 16-byte copies, up to three tiles ahead, and orders K and V of the block from the copy engine; two
// warpgroups multiply, 64 rows each. A block that fits one tile of keys stays in shared memory for all tiles of the
// item; a larger one streams through a ring once for every 128 rows. To the multiplying warpgroups all this is one
// sequence of steps (a tile of rows, a tile of keys): the product S = Q K^T of a step runs beside O += P V of the one
// before, across tiles and items, and the two warpgroups take turns so that one's exponentials hide behind the
// other's products.
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
constexpr int kQueryStages = 3;
constexpr int kQueriesAhead = 2;  // tiles of rows ordered before the keys of the current one
constexpr int kKeyStages = 2;
constexpr int kProducerRegisters = 72;
constexpr int kConsumerRegisters = 216;  // 128 * 72 + 256 * 216 <= 65536
constexpr std::uint32_t kNoPlace = 0xffffffffu;

/// What the multiplying warpgroups must know of a tile of rows; key_tiles == 0 ends the work.
struct TileInfo {
  std::int32_t key_tiles;
  std::int32_t tail;  // keys of the last tile of keys
  std::int32_t first_of_unit, last_of_unit;

  /// Each tile of keys comes for this tile of rows and goes after it, but for those that stay for a whole unit.
  __device__ __forceinline__ bool keys_arrive() const { return key_tiles > 1 || first_of_unit; }
  __device__ __forceinline__ bool keys_leave() const { return key_tiles > 1 || last_of_unit; }
};

template <class T, int kDim, int kKeys>
struct HistoryStorage {
  alignas(1024) T q[kQueryStages][kRows * kDim];
  alignas(1024) T k[kKeyStages][kKeys * kDim];
  alignas(1024) T v[kKeyStages][kKeys * kDim];
  std::uint32_t place[kQueryStages][kRows];  // of each row's partial result; kNoPlace for none
  TileInfo info[kQueryStages];
  Barrier q_full[kQueryStages], q_empty[kQueryStages];
  Barrier k_full[kKeyStages], k_empty[kKeyStages];
  Barrier v_full[kKeyStages], v_empty[kKeyStages];
};

/// Walks over the tiles of rows of this thread block: units (a work item for one key/value head) and their tiles.
struct Cursor {
  const HistoryArgs& args;
  std::int64_t index, units;
  WorkItem item;
  std::int32_t head = 0;  // the first of the unit's query heads
  std::int32_t rows = 0;  // entries times query heads
  std::int32_t tile = 0, tiles = 0;

  __device__ __forceinline__ explicit Cursor(const HistoryArgs& arguments)
      : args(arguments),
        index(blockIdx.x),
        units(static_cast<std::int64_t>(*arguments.item_count) * arguments.groups.units_per_list) {
    load();
  }
  __device__ __forceinline__ bool valid() const { return index < units; }
  __device__ __forceinline__ void next() {
    if (++tile < tiles) return;
    index += gridDim.x;
    load();
  }
  __device__ __forceinline__ int key_tiles(int keys) const { return (item.keys + keys - 1) / keys; }

 private:
  __device__ __forceinline__ void load() {
    if (!valid()) return;
    const HeadGroups& groups = args.groups;
    const bool one_unit = groups.units_per_list == 1;
    item = args.items[one_unit ? index : index / groups.units_per_list];
    const auto unit = static_cast<std::int32_t>(one_unit ? 0 : index % groups.units_per_list);
    head = (args.first_list + item.list) * groups.heads_per_list + unit * groups.heads_per_unit;
    rows = item.count * groups.heads_per_unit;
    tile = 0;
    tiles = (rows + kRows - 1) / kRows;
  }
};

/// The row that this producer thread looks up in a tile: where q begins and where the partial result goes.
struct Lookup {
  std::int64_t source = -1;
  std::uint32_t place = kNoPlace;

  __device__ __forceinline__ explicit Lookup(const Cursor& cursor) {
    if (!cursor.valid()) return;
    const HistoryArgs& args = cursor.args;
    const std::int32_t position = cursor.tile * kRows + static_cast<std::int32_t>(threadIdx.x);
    if (position >= cursor.rows) return;
    const std::int32_t group = args.groups.heads_per_unit;
    const std::int32_t entry_index = group == 1 ? position : position / group;
    const std::int32_t head = cursor.head + position - entry_index * group;
    const std::uint32_t entry = __ldg(args.entries + cursor.item.begin + entry_index);
    const std::uint32_t row = entry >> kSlotBits, slot = entry & ((1u << kSlotBits) - 1u);
    const Partials& partials = args.partials;
    source = (partials.first_row + row) * args.q_row_stride + head * args.q_head_stride;
    place = static_cast<std::uint32_t>(partials.place(row, head) + slot);
  }
};

/// The producer warpgroup gathers a tile of query rows; each lane has looked one row up for its warp.
template <class T, int kDim>
__device__ __forceinline__ void gather_rows(const HistoryArgs& args, std::int64_t offset, T* shared) {
  constexpr int kChunks = kDim / 8;          // of 16 bytes in a row
  constexpr int kRowsAtOnce = 32 / kChunks;  // by one warp
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
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
  const auto order_keys = [&](const Cursor& cursor) {
    const int key_tiles = cursor.key_tiles(kKeys);
    if (key_tiles == 1 && cursor.tile > 0) return;  // they are there
    const std::int32_t kv_head = cursor.head / args.groups.heads_per_kv;
    for (int tile = 0; tile < key_tiles; ++tile) {
      constexpr std::uint32_t kBytes = kKeys * kDim * sizeof(T);
      const auto key = static_cast<int>(cursor.item.first_key) + tile * kKeys;
      storage.k_empty[place.stage].wait(place.parity ^ 1u);
      storage.k_full[place.stage].arrive_expecting(kBytes);
      copy_tile<kKeys, kDim>(storage.k[place.stage], &k_map, &storage.k_full[place.stage], key, kv_head);
      storage.v_empty[place.stage].wait(place.parity ^ 1u);
      storage.v_full[place.stage].arrive_expecting(kBytes);
      copy_tile<kKeys, kDim>(storage.v[place.stage], &v_map, &storage.v_full[place.stage], key, kv_head);
      place.advance();
    }
  };
  Cursor ahead(args), now(args);
  Lookup lookup(ahead);
  // One tile, or the sign that there are no more.
  const auto order_rows = [&] {
    storage.q_empty[q_place.stage].wait(q_place.parity ^ 1u);
    storage.place[q_place.stage][threadIdx.x] = lookup.place;
    if (threadIdx.x == 0) {
      const int key_tiles = ahead.valid() ? ahead.key_tiles(kKeys) : 0;
      storage.info[q_place.stage] = {key_tiles, ahead.item.keys - (key_tiles - 1) * kKeys, ahead.tile == 0,
                                     ahead.tile + 1 == ahead.tiles};
    }
    if (ahead.valid()) gather_rows<T, kDim>(args, lookup.source, storage.q[q_place.stage]);
    storage.q_full[q_place.stage].arrive_after_copies();
    storage.q_full[q_place.stage].arrive();  // for what ordinary stores wrote
    q_place.advance();
    if (!ahead.valid()) return;
    ahead.next();
    lookup = Lookup(ahead);  // used a tile later, when it will have come
  };
  const bool first_warp = threadIdx.x < 32;
  bool ended = false;
  const auto order_rows_or_end = [&] {
    if (ended) return;
    ended = !ahead.valid();
    order_rows();
  };
  for (int tile = 0; tile < kQueriesAhead; ++tile) order_rows_or_end();
  while (now.valid()) {
    if (threadIdx.x == 0) order_keys(now);
    if (first_warp) __syncwarp();
    order_rows_or_end();
    now.next();
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
__device__ __forceinline__ void store_rows(const Partials& partials, const std::uint32_t (&places)[2],
                                           const float (&o)[kDim / 2], const float (&factor)[2],
                                           const float (&lse)[2]) {
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool valid = places[i] != kNoPlace;
    T* out = static_cast<T*>(partials.out) + static_cast<std::int64_t>(places[i]) * kDim;
#pragma unroll
    for (int part = 0; part < kDim / 32; ++part) {
      std::uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = 4 * (4 * part + j) + 2 * i;
        words[j] = pack<T>(o[at] * factor[i], o[at + 1] * factor[i]);
      }
      quad_transpose(words);
      if (valid) {
        // Read once, by another kernel: Q, K and V shall stay in the L2 cache instead.
        __stcs(reinterpret_cast<uint4*>(out + part * 32 + lane * 8), uint4{words[0], words[1], words[2], words[3]});
      }
    }
    // All bits set mean "no partial here"; a NaN of this kernel must not look like that.
    const float value = isnan(lse[i]) ? __int_as_float(0x7fffffff) : lse[i];
    if (valid && lane == 0) partials.lse[places[i]] = value;
  }
}

template <class T, int kDim, int kKeys>
__device__ __forceinline__ void consume(const HistoryArgs& args, HistoryStorage<T, kDim, kKeys>& storage) {
  RingPlace<kQueryStages> q_place;
  RingPlace<kKeyStages> k_place, v_place;
  const int group = threadIdx.x / 128 - 1;
  const int row = group * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  const float scale_log2 = args.softmax_scale * kLog2E;
  const auto release = [](Barrier& barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier.arrive();
  };
  // The warpgroups take turns at ordering products.
  constexpr int kTurnBarrier = 3, kTurnThreads = kConsumerWarps * 32;
  const auto wait_for_turn = [&] { named_sync(kTurnBarrier + group, kTurnThreads); };
  const auto pass_turn = [&] { named_arrive(kTurnBarrier + 1 - group, kTurnThreads); };
  if (group == 1) pass_turn();

  float scores[kKeys / 2], o[kDim / 2], shrink[2];
  std::uint32_t p[kKeys / 4];
  RowState state;
  std::uint32_t places[2];
  TileInfo tile;
  int key_tile = 0;

  const auto begin_tile = [&] {  // returns what came; its rows are in storage.q[q_place.stage]
    storage.q_full[q_place.stage].wait(q_place.parity);
    fence_async_proxy();  // the rows came through cp.async
    return storage.info[q_place.stage];
  };
  const auto read_places = [&](std::uint32_t(&to)[2]) {
    to[0] = storage.place[q_place.stage][row];
    to[1] = storage.place[q_place.stage][row + 8];
  };
  const auto query_key = [&] {
    wgmma_fence();
    wgmma_tiles<T, kKeys, kDim / 16, Major::K, Major::K>(
        scores, tile_descriptor<Major::K>(storage.q[q_place.stage], kRows, group * 64), kRows,
        tile_descriptor<Major::K>(storage.k[k_place.stage], kKeys), kKeys, false);
    wgmma_commit();
  };
  const auto after_query_key = [&](const TileInfo& of, int of_key_tile) {
    if (of.keys_leave()) {
      release(storage.k_empty[k_place.stage]);
      k_place.advance();
    }
    if (of_key_tile + 1 == of.key_tiles) {
      release(storage.q_empty[q_place.stage]);
      q_place.advance();
      if (of.tail < kKeys) mask_tail<kKeys>(scores, of.tail);
    }
  };
  const auto wait_for_values = [&] {
    if (!tile.keys_arrive()) return;
    storage.v_full[v_place.stage].wait(v_place.parity);
    if (key_tile + 1 == tile.key_tiles && tile.tail < kKeys) {
      clear_tail<T, kDim, kKeys>(storage.v[v_place.stage], tile.tail, group);
    }
  };
  const auto probability_value = [&] {
    wgmma_fence();
    wgmma_tiles<T, kDim, kKeys / 16, Major::MN>(o, p, tile_descriptor<Major::MN>(storage.v[v_place.stage], kKeys),
                                                kKeys, key_tile > 0);
    wgmma_commit();
  };
  const auto after_probability_value = [&] {
    if (!tile.keys_leave()) return;
    release(storage.v_empty[v_place.stage]);
    v_place.advance();
  };
  const auto store = [&](RowState& of) {
    float factor[2], lse[2];
    of.finish(args.softmax_scale, factor, lse);
    store_rows<T, kDim>(args.partials, places, o, factor, lse);
  };

  tile = begin_tile();
  if (tile.key_tiles == 0) return;
  read_places(places);
  storage.k_full[k_place.stage].wait(k_place.parity);
  query_key();
  wgmma_wait<0>();
  hold_registers(scores);
  after_query_key(tile, 0);
  state.update<kKeys, true>(scores, scale_log2, shrink);
  pack_rows<T, kKeys>(p, scores);
  while (true) {
    const bool ends = key_tile + 1 == tile.key_tiles;
    TileInfo next = tile;
    std::uint32_t next_places[2];
    if (ends) {
      next = begin_tile();
      if (next.key_tiles == 0) break;
      read_places(next_places);
    }
    const int next_key_tile = ends ? 0 : key_tile + 1;
    if (next.keys_arrive()) storage.k_full[k_place.stage].wait(k_place.parity);
    wait_for_turn();
    query_key();
    wait_for_values();
    probability_value();
    pass_turn();
    wgmma_wait<1>();
    hold_registers(scores);
    after_query_key(next, next_key_tile);
    RowState ended = state;
    if (ends) state = RowState{};
    state.update<kKeys, false>(scores, scale_log2, shrink);
    wgmma_wait<0>();
    hold_registers(o);
    after_probability_value();
    if (ends) {
      store(ended);
      places[0] = next_places[0], places[1] = next_places[1];
    } else {
      scale_rows<kDim>(o, shrink);
    }
    pack_rows<T, kKeys>(p, scores);
    tile = next;
    key_tile = next_key_tile;
  }
  wait_for_values();
  probability_value();
  wgmma_wait<0>();
  hold_registers(o);
  store(state);
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
      storage.q_full[i].init(2 * 128);  // copies and stores of each producer
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
