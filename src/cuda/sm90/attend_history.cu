// Attention of gathered query rows over the past block that they chose.
//
// A work item is a block and some of the rows that chose it; thread blocks take one after the other from a counter. Its
// rows are taken 128 at a time: three warps gather them with 16-byte copies, up to three tiles ahead, another orders K
// and V of the block from the copy engine; two warpgroups multiply, 64 rows each. A block that fits one tile of keys
// stays in shared memory for all tiles of the item; a larger one streams through a ring once for every 128 rows. To the
// multiplying warpgroups all this is one sequence of steps (a tile of rows, a tile of keys), across tiles and items:
// the product S = Q K^T of a step runs beside the stores or the scaling that the step before left, O += P V of the step
// before beside the exponentials of this one, and the two warpgroups take turns so that one's exponentials hide behind
// the other's products.
#include <algorithm>

#include "cuda/attend.h"
#include "cuda/dependent_launch.h"
#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/device/thread.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/instances.h"
#include "cuda/sm90/history_producer.cuh"

namespace moba::cuda {
namespace {

using namespace history;

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

/// Rows whose keys have all been seen: the factors of their accumulators, and where this lane's part of them goes among
/// the partial results; nowhere for rows that are none.
template <class T>
struct EndedRows {
  float factor[2] = {0.0f, 0.0f};
  T* out[2] = {nullptr, nullptr};
};

/// Rows of the accumulator, scaled, in the order of Partials.
template <class T, int kDim>
__device__ __forceinline__ void store_rows(const EndedRows<T>& rows, const float (&o)[kDim / 2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (rows.out[i] == nullptr) continue;
#pragma unroll
    for (int part = 0; part < kDim / 32; ++part) {
      std::uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = 4 * (4 * part + j) + 2 * i;
        words[j] = pack<T>(o[at] * rows.factor[i], o[at + 1] * rows.factor[i]);
      }
      // Read once, by another kernel: Q, K and V shall stay in the L2 cache instead.
      __stcs(reinterpret_cast<uint4*>(rows.out[i] + part * 32), uint4{words[0], words[1], words[2], words[3]});
    }
  }
}

template <class T, int kDim, int kKeys>
__device__ __forceinline__ void consume(const HistoryArgs& args, HistoryStorage<T, kDim, kKeys>& storage) {
  RingPlace<kQueryStages> q_place;
  RingPlace<kKeyStages> k_place, v_place;
  const int group = uniform(static_cast<int>(threadIdx.x) / 128 - 1);
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
  std::uint32_t places[2] = {kNoPlace, kNoPlace};
  TileInfo tile;
  int key_tile = 0;

  const auto begin_tile = [&] {  // returns what came; its rows are in storage.q[q_place.stage]
    storage.q_full[q_place.stage].wait(q_place.parity);
    return storage.info[q_place.stage];
  };
  const auto read_places = [&](std::uint32_t(&to)[2]) {
    to[0] = storage.place[q_place.stage][row];
    to[1] = storage.place[q_place.stage][row + 8];
  };
  const auto queries = [&] {
    return uniform_descriptor(tile_descriptor<Major::K>(storage.q[q_place.stage], kRows, group * 64));
  };
  const auto keys = [&] { return uniform_descriptor(tile_descriptor<Major::K>(storage.k[k_place.stage], kKeys)); };
  const auto values = [&] { return uniform_descriptor(tile_descriptor<Major::MN>(storage.v[v_place.stage], kKeys)); };
  const auto query_key = [&](std::uint64_t q_tile, std::uint64_t k_tile) {
    wgmma_fence();
    wgmma_tiles<T, kKeys, kDim / 16, Major::K, Major::K>(scores, q_tile, kRows, k_tile, kKeys, false);
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
  const auto probability_value = [&](std::uint64_t v_tile) {
    wgmma_fence();
    wgmma_tiles<T, kDim, kKeys / 16, Major::MN>(o, p, v_tile, kKeys, key_tile > 0);
    wgmma_commit();
  };
  bool values_leave = false;  // after the product under way
  const auto end_probability_value = [&] {
    wgmma_wait<0>();
    hold_registers(o);
    if (!values_leave) return;
    release(storage.v_empty[v_place.stage]);
    v_place.advance();
  };
  // What the product before last left: scaled where the next adds to it, stored where it was the tile's last.
  EndedRows<T> ended;
  const auto take_last = [&] {
    if (key_tile > 0) {
      scale_rows<kDim>(o, shrink);
    } else {
      store_rows<T, kDim>(ended, o);
    }
  };
  const auto end_rows = [&] {
    const int lane = threadIdx.x % 4;
    float lse[2];
    state.finish(args.softmax_scale, ended.factor, lse);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      ended.out[i] = nullptr;
      if (places[i] == kNoPlace) continue;
      ended.out[i] = static_cast<T*>(args.partials.out) + static_cast<std::int64_t>(places[i]) * kDim + lane * 8;
      // All bits set mean "no partial here"; a NaN of this kernel must not look like that.
      if (lane == 0) args.partials.lse[places[i]] = isnan(lse[i]) ? __int_as_float(0x7fffffff) : lse[i];
    }
  };
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) o[i] = 0.0f;

  // A tile whose rows are all the other warpgroup's: its steps pass without products.
  const auto passes = [&](const TileInfo& of) { return group == 1 && of.half; };
  bool first_step = true;  // the only one that is nobody's turn
  const auto pass_tile = [&] {
    for (key_tile = 0; key_tile < tile.key_tiles; ++key_tile) {
      if (tile.keys_arrive()) {
        storage.k_full[k_place.stage].wait(k_place.parity);
        storage.v_full[v_place.stage].wait(v_place.parity);
      }
      if (!first_step) {
        wait_for_turn();
        pass_turn();
      }
      first_step = false;
      if (tile.keys_leave()) {
        release(storage.k_empty[k_place.stage]);
        k_place.advance();
        release(storage.v_empty[v_place.stage]);
        v_place.advance();
      }
    }
    release(storage.q_empty[q_place.stage]);
    q_place.advance();
  };

  tile = begin_tile();
  while (tile.key_tiles > 0) {
    if (passes(tile)) {
      pass_tile();
      tile = begin_tile();
      continue;
    }
    read_places(places);
    if (tile.keys_arrive()) storage.k_full[k_place.stage].wait(k_place.parity);
    if (!first_step) wait_for_turn();
    query_key(queries(), keys());
    if (!first_step) pass_turn();
    first_step = false;
    wgmma_wait<0>();
    hold_registers(scores);
    key_tile = 0;
    after_query_key(tile, 0);
    state = RowState{};
    state.update<kKeys, true>(scores, scale_log2, shrink);
    values_leave = false;
    TileInfo next;
    while (true) {
      // Here and not behind the exponentials, where ptxas would wait before them.
      end_probability_value();
      pack_rows<T, kKeys>(p, scores);
      const bool ends = key_tile + 1 == tile.key_tiles;
      next = tile;
      std::uint32_t next_places[2];
      if (ends) {
        next = begin_tile();
        if (next.key_tiles == 0 || passes(next)) break;
        read_places(next_places);
      }
      const int next_key_tile = ends ? 0 : key_tile + 1;
      if (next.keys_arrive()) storage.k_full[k_place.stage].wait(k_place.parity);
      const std::uint64_t q_tile = queries(), k_tile = keys(), v_tile = values();
      wait_for_turn();
      query_key(q_tile, k_tile);
      take_last();  // beside the product of queries and keys
      wait_for_values();
      probability_value(v_tile);
      pass_turn();
      wgmma_wait<1>();
      hold_registers(scores);
      after_query_key(next, next_key_tile);
      if (ends) {
        end_rows();
        state = RowState{};
        places[0] = next_places[0], places[1] = next_places[1];
      }
      state.update<kKeys, false>(scores, scale_log2, shrink);
      hold_registers(scores);  // the exponentials beside the product of probabilities and values
      hold_registers(state.sum);
      values_leave = tile.keys_leave();
      tile = next;
      key_tile = next_key_tile;
    }
    take_last();
    wait_for_values();
    probability_value(values());
    values_leave = tile.keys_leave();
    end_probability_value();
    end_rows();
    store_rows<T, kDim>(ended, o);
    ended = EndedRows<T>{};
    tile = next;
  }
}

template <class T, int kDim, int kKeys>
__global__ void __launch_bounds__(kThreads, 1)
    attend_history_kernel(const __grid_constant__ HistoryArgs args, const __grid_constant__ CUtensorMap k_map,
                          const __grid_constant__ CUtensorMap v_map) {
  extern __shared__ char shared[];
  auto& storage = first_panel<HistoryStorage<T, kDim, kKeys>>(shared);
  if (threadIdx.x == 0) {
    prefetch_map(&k_map);
    prefetch_map(&v_map);
    for (int i = 0; i < kQueryStages; ++i) {
      for (Barrier& copied : storage.q_copied[i]) copied.init(32);
      storage.q_full[i].init(kGatherWarps);
      storage.q_empty[i].init(kConsumerWarps);
    }
    for (int i = 0; i < kUnitStages; ++i) {
      storage.unit_full[i].init(1);
      storage.unit_empty[i].init(kGatherWarps + 1);
    }
    for (int i = 0; i < kKeyStages; ++i) {
      storage.k_full[i].init(1);
      storage.v_full[i].init(1);
      storage.k_empty[i].init(kConsumerWarps);
      storage.v_empty[i].init(kConsumerWarps);
    }
    fence_barrier_init();
  }
  wait_for_launch_before();
  allow_launch_after();
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x >= 32) {
      produce_rows<T, kDim, kKeys>(args, storage);
    } else if (threadIdx.x == 0) {
      produce_keys<T, kDim, kKeys>(args, k_map, v_map, storage);
    }
  } else {
    take_registers<kConsumerRegisters>();
    consume<T, kDim, kKeys>(args, storage);
  }
}

template <class T, int kDim, int kKeys>
void launch(cudaStream_t stream, const HistoryArgs& args, const CUtensorMap& k_map, const CUtensorMap& v_map,
            std::int64_t max_units) {
  const auto kernel = attend_history_kernel<T, kDim, kKeys>;
  constexpr int kBytes = sizeof(HistoryStorage<T, kDim, kKeys>) + kPanelAlignment;
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(multiprocessors(), max_units));
  launch_dependent(kernel, "attend_history_kernel", grid, kThreads, kBytes, stream, args, k_map, v_map);
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
