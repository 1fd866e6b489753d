// Causal attention inside each row's own block, and the merge with the row's partial results.
//
// A unit of work is 128 or 192 consecutive rows of a sequence and one head: two or three warpgroups multiply and merge,
// 64 rows each, and share keys and values. Persistent thread blocks take unit after unit; own_feed.cuh says what brings
// them their operands. Within a unit the product S = Q K^T of the next tile of keys and the scaling of O, and O += P V
// of this tile and the exponentials of the next run side by side.
#include "cuda/attend.h"
#include "cuda/cuda_check.h"
#include "cuda/dependent_launch.h"
#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/device/thread.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/instances.h"
#include "cuda/sm90/own_feed.cuh"
#include "cuda/sm90/own_merge.cuh"
#include "cuda/sm90/own_spoiled.cuh"

namespace moba::cuda {
namespace {

using namespace own;

/// A multiplying warpgroup's way through the ring of pieces.
template <class T, int kDim, int kGroups>
struct Reader {
  using Place = RingPlace<OwnStorage<T, kDim, kGroups>::kStages>;

  OwnStorage<T, kDim, kGroups>& storage;
  Place place;

  __device__ __forceinline__ void wait(const Place& at) const { storage.full[at.stage].wait(at.parity); }
  __device__ __forceinline__ void release(const Place& at) const { storage.empty[at.stage].arrive_by_warp(); }
  /// The same for a piece that was read by ordinary loads, which the copy engine's next piece could otherwise overtake.
  __device__ __forceinline__ void release_loaded(const Place& at) const {
    fence_async_proxy();
    release(at);
  }
  /// Passes pieces that other groups read.
  __device__ __forceinline__ void skip(int count) {
#pragma unroll 1
    for (; count > 0; --count) {
      wait(place);
      release(place);
      place.advance();
    }
  }
  __device__ __forceinline__ T* piece(const Place& at) const {
    return storage.piece[at.stage];
  }
  template <Major kMajor>
  __device__ __forceinline__ std::uint64_t descriptor(const Place& at) const {
    return uniform_descriptor(tile_descriptor<kMajor>(piece(at), kKeys));
  }
};

/// The scores of keys that a row must not see become -inf: those after its position, or those before its block's start.
/// Of the thread's two rows, both are counted from the first key of the tile.
template <bool kAfter>
__device__ __forceinline__ void mask_keys(float (&scores)[kKeys / 2], const std::int32_t (&edge)[2]) {
  const int column = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < kKeys / 2; ++i) {
    const int key = i / 4 * 8 + (i & 1), at = edge[i >> 1 & 1] - column;
    if (kAfter ? key > at : key < at) scores[i] = minus_infinity();
  }
}

/// o * factor of the rows' own keys, and their log-sum-exps; {0, -inf} where they see none.
template <class T, int kDim, int kGroups>
__device__ __forceinline__ void attend_own_keys(const OwnArgs& args, const Unit<kGroups>& unit, const GroupPart& part,
                                                int group, std::uint32_t& q_parity, Reader<T, kDim, kGroups>& reader,
                                                float (&o)[kDim / 2], float (&factor)[2], float (&lse)[2]) {
  using Place = typename Reader<T, kDim, kGroups>::Place;
  const float scale_log2 = args.softmax_scale * kLog2E;
  const int key_tiles = uniform(unit.key_tiles);
  const int begin = uniform(part.begin), end = uniform(part.end);
  RowState state;
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) o[i] = 0.0f;
  if (end > begin) {
    OwnStorage<T, kDim, kGroups>& storage = reader.storage;
    reader.skip(2 * begin);
    storage.q_full[group].wait(q_parity);
    q_parity ^= 1u;

    Place keys = reader.place;  // of the tile whose scores come next; its values lie one behind
    const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    const std::int32_t first = uniform(part.position), last_low = uniform(part.last_low);
    const std::int32_t position[2] = {first + row, first + row + 8};
    float scores[kKeys / 2], shrink[2] = {0.0f, 0.0f};
    std::uint32_t p[kKeys / 4];
    const std::uint64_t q_tile = uniform_descriptor(tile_descriptor<Major::K>(storage.q[group], kRows));
    const auto query_key = [&](const Place& at) {
      const std::uint64_t k_tile = reader.template descriptor<Major::K>(at);
      wgmma_fence();
      wgmma_tiles<T, kKeys, kDim / 16, Major::K, Major::K>(scores, q_tile, kRows, k_tile, kKeys, false);
      wgmma_commit();
    };
    const auto probability_value = [&](const Place& at) {
      const std::uint64_t v_tile = reader.template descriptor<Major::MN>(at);
      wgmma_fence();
      wgmma_tiles<T, kDim, kKeys / 16, Major::MN>(o, p, v_tile, kKeys, true);
      wgmma_commit();
    };
    const auto mask = [&](int tile) {
      const std::int32_t key = tile * kKeys;
      if (key + kKeys > first + 1) mask_keys<true>(scores, {position[0] - key, position[1] - key});
      if (key < last_low) {
        std::int32_t start[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) start[i] = block_start(max(position[i], 0), args.block_size) - key;
        mask_keys<false>(scores, start);
      }
    };

    reader.wait(keys);
    query_key(keys);
    wgmma_wait<0>();
    hold_registers(scores);
    reader.release(keys);
    if (end == begin + 1) storage.q_empty[group].arrive_by_warp();
    mask(begin);
    state.update<kKeys, true>(scores, scale_log2, shrink);
    Place values = keys;
    values.advance(1);
    for (int tile = begin + 1; tile < end; ++tile) {
      // Here and not behind the exponentials, where ptxas would wait before them.
      wgmma_wait<0>();
      hold_registers(o);
      if (tile > begin + 1) {
        reader.release(values);
        values.advance(2);
      }
      pack_rows<T, kKeys>(p, scores);
      keys.advance(2);
      reader.wait(keys);
      query_key(keys);
      scale_rows<kDim>(o, shrink);
      reader.wait(values);
      probability_value(values);
      wgmma_wait<1>();
      hold_registers(scores);
      reader.release(keys);
      if (tile + 1 == end) storage.q_empty[group].arrive_by_warp();
      mask(tile);
      state.update<kKeys, false>(scores, scale_log2, shrink);
      hold_registers(scores);  // the exponentials beside the product of probabilities and values
      hold_registers(state.sum);
    }
    wgmma_wait<0>();
    hold_registers(o);
    if (end > begin + 1) {
      reader.release(values);
      values.advance(2);
    }
    pack_rows<T, kKeys>(p, scores);
    scale_rows<kDim>(o, shrink);
    reader.wait(values);
    probability_value(values);
    wgmma_wait<0>();
    hold_registers(o);
    reader.release(values);
    values.advance();
    reader.place = values;
  }
  reader.skip(2 * (key_tiles - end));
  state.finish(args.softmax_scale, factor, lse);
}

template <class T, int kDim, int kGroups>
__device__ __forceinline__ void consume(const OwnArgs& args, OwnStorage<T, kDim, kGroups>& storage) {
  const int group = uniform(threadIdx.x / 128 - 1), lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x % 128 / 32 * 16;  // of the group, the warp's first
  const int row = warp_row + lane / 4;               // the thread's first; the other is 8 behind it
  RingPlace<kUnitStages> unit_place;
  std::uint32_t q_parity = 0;
  Reader<T, kDim, kGroups> reader{storage, {}};
  const std::int32_t budget = args.partials.budget;
  while (true) {
    storage.unit_full[unit_place.stage].wait(unit_place.parity);
    const Unit<kGroups>& unit = storage.unit[unit_place.stage];
    if (uniform(unit.rows) == 0) return;
    const GroupPart& part = unit.part[group];
    const int groups = uniform(unit.groups), group_rows = uniform(part.rows), slots = max(budget, 1);
    if (group_rows == 0) {
      reader.skip(2 * uniform(unit.key_tiles) + groups * slots);
    } else {
      const std::int64_t first_row = unit.row + group * kRows;
      const std::int32_t head = unit.head;
      MergedRows<kDim> rows;
      float lse[2];
      attend_own_keys(args, unit, part, group, q_parity, reader, rows.o, rows.factor, lse);
      attend_spoiled_rows<T, kDim>(args, unit, part, first_row, rows.o, rows.factor, lse);
      rows.begin(lse);
      float weights[kLseSlots][2];
      for (std::int32_t slot = 0; slot < slots; ++slot) {
        reader.skip(group);
        reader.wait(reader.place);
        if (budget > 0) {
          if (slot % kLseSlots == 0) {
#pragma unroll
            for (int i = 0; i < kLseSlots; ++i) {
              weights[i][0] = weights[i][1] = minus_infinity();
              if (slot + i >= budget) continue;
              const float* from =
                  storage.lse[reader.place.stage][i] + row + lse_shift(args.partials, first_row, head, slot + i);
              weights[i][0] = from[0], weights[i][1] = from[8];
            }
            rows.weigh(weights);
          }
          rows.template add<T>(weights[0], reader.piece(reader.place) + row * kDim + lane % 4 * 8);
#pragma unroll
          for (int i = 0; i + 1 < kLseSlots; ++i) weights[i][0] = weights[i + 1][0], weights[i][1] = weights[i + 1][1];
        }
        if (slot + 1 == slots) break;
        reader.release_loaded(reader.place);
        reader.place.advance();
        reader.skip(groups - 1 - group);
      }
      // The last piece has been read by this warp alone: its place takes the warp's rows of the result.
      float scale[2];
      rows.finish(scale, lse);
      __syncwarp();
      T* room = reader.piece(reader.place) + warp_row * kDim;
      rows_to_shared<T, kDim>(room, rows.o, scale);
      __syncwarp();
      uint4 words[kDim / 16];
      rows_from_shared<T, kDim>(words, room);
      reader.release_loaded(reader.place);
      reader.place.advance();
      reader.skip(groups - 1 - group);
      T* out = static_cast<T*>(args.out) + first_row * args.out_row_stride + head * args.out_head_stride;
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        const int at = warp_row + share_row<kDim>(i);
        if (at < group_rows) {
          __stwb(reinterpret_cast<uint4*>(out + at * args.out_row_stride + lane % (kDim / 8) * 8), words[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (lane % 4 == 0 && row + 8 * i < group_rows) {
          args.lse[head * args.lse_head_stride + first_row + row + 8 * i] = lse[i];
        }
      }
    }
    storage.unit_empty[unit_place.stage].arrive_by_warp();
    unit_place.advance();
  }
}

template <class T, int kDim, int kGroups>
__global__ void __launch_bounds__(OwnShape<kGroups>::kThreads, 1)
    attend_own_kernel(const __grid_constant__ OwnArgs args, const __grid_constant__ std::int64_t units,
                      const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
                      const __grid_constant__ CUtensorMap v_map) {
  extern __shared__ char shared[];
  auto& storage = first_panel<OwnStorage<T, kDim, kGroups>>(shared);
  if (threadIdx.x == 0) storage.init();
  // Only the merge needs what attend_history does, and that began when all before it was complete.
  if (args.partials.budget == 0) wait_for_launch_before();
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<OwnShape<kGroups>::kProducerRegisters>();
    if (threadIdx.x == 0) {
      produce_pieces(args, q_map, k_map, v_map, storage);
      wait_for_launch_before();  // where there was nothing to merge: nothing may end before it
    } else if (threadIdx.x == 32) {
      produce_units(args, units, storage);
    }
  } else {
    take_registers<OwnShape<kGroups>::kConsumerRegisters>();
    consume(args, storage);
  }
}

template <class T, int kDim>
__global__ void fill_unheld_rows_kernel(const __grid_constant__ OwnArgs args, std::int64_t rows, std::int32_t heads) {
  for (std::int64_t row = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; row < rows;
       row += gridDim.x * std::int64_t{blockDim.x}) {
    if (sequence_of_row(args.sequences, args.sequence_count, row) >= 0) continue;
    for (std::int32_t head = 0; head < heads; ++head) {
      T* out = static_cast<T*>(args.out) + row * args.out_row_stride + head * args.out_head_stride;
      for (int i = 0; i < kDim; i += 8) *reinterpret_cast<uint4*>(out + i) = uint4{0, 0, 0, 0};
      args.lse[head * args.lse_head_stride + row] = minus_infinity();
    }
  }
}

}  // namespace

void launch_attend_own(cudaStream_t stream, DType dtype, std::int64_t head_dim, const OwnArgs& args,
                       const CUtensorMap& q_map, const CUtensorMap& k_map, const CUtensorMap& v_map) {
  if (args.rows == 0 || args.partials.heads == 0) return;
  const auto launch = [&]<class T, int kDim, int kGroups>() {
    const auto kernel = attend_own_kernel<T, kDim, kGroups>;
    constexpr int kBytes = sizeof(OwnStorage<T, kDim, kGroups>) + kPanelAlignment;
    static_assert(kBytes <= 227 * 1024);
    const std::int64_t units = unit_count(args);
    const auto grid = static_cast<unsigned>(min(units, std::int64_t{multiprocessors()}));
    launch_dependent(kernel, "attend_own_kernel", grid, OwnShape<kGroups>::kThreads, kBytes, stream, args, units, q_map,
                     k_map, v_map);
  };
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    if (own_unit_rows(args.block_size) == OwnShape<3>::kUnitRows) {
      launch.template operator()<T, kDim, 3>();
    } else {
      launch.template operator()<T, kDim, 2>();
    }
  });
}

void launch_fill_unheld_rows(cudaStream_t stream, DType dtype, std::int64_t head_dim, const OwnArgs& args,
                             std::int64_t rows, std::int32_t heads) {
  if (rows == 0) return;
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    constexpr int kFillThreads = 256;
    const auto grid = static_cast<unsigned>(min((rows + kFillThreads - 1) / kFillThreads, std::int64_t{1024}));
    fill_unheld_rows_kernel<T, kDim><<<grid, kFillThreads, 0, stream>>>(args, rows, heads);
    check_cuda(cudaGetLastError(), "fill_unheld_rows_kernel");
  });
}

}  // namespace moba::cuda
