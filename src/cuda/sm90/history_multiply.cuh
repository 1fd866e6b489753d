// What multiplies in attend_history_kernel: a warpgroup's steps (a tile of rows, a tile of keys), across tiles and
// items, in one of two orders.
#pragma once

#include "cuda/attend.h"
#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/device/thread.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/sm90/history_producer.cuh"

namespace moba::cuda::history {

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

/// Values of another block, which may be NaN, must not meet the probabilities 0 of the masked keys. All warpgroups
/// write the same zeros, each before its own product, so that none waits for another.
template <class T, int kDim, int kKeys>
__device__ __forceinline__ void clear_tail(T* v, int keys, int barrier) {
  constexpr int kChunks = kDim / 8;
  for (int i = threadIdx.x % 128; i < (kKeys - keys) * kChunks; i += 128) {
    const int offset = swizzled_offset(kKeys, keys + i / kChunks, i % kChunks);
    *reinterpret_cast<uint4*>(reinterpret_cast<char*>(v) + offset) = uint4{0, 0, 0, 0};
  }
  fence_async_proxy();
  named_sync(barrier, 128);
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
#pragma unroll
    for (int part = 0; part < kDim / 32; ++part) {
      std::uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = 4 * (4 * part + j) + 2 * i;
        words[j] = pack<T>(o[at] * rows.factor[i], o[at + 1] * rows.factor[i]);
      }
      // Read once, by another kernel: Q, K and V shall stay in the L2 cache instead.
      store_once_if(rows.out[i] != nullptr, rows.out[i] + part * 32, uint4{words[0], words[1], words[2], words[3]});
    }
  }
}

/// One of the warpgroups that multiply.
template <class T, int kDim, int kKeys>
class Multiplier {
 public:
  using Shape = HistoryShape<kDim>;
  using Storage = HistoryStorage<T, kDim, kKeys>;
  static constexpr int kRows = Shape::kRows, kGroups = Shape::kGroups;
  /// Whether S of a step and P of the one before fit the registers together.
  static constexpr bool kAhead = kGroups == 2 || kKeys == 64;

  __device__ __forceinline__ Multiplier(const HistoryArgs& args, Storage& storage)
      : args_(args),
        storage_(storage),
        group_(uniform(static_cast<int>(threadIdx.x) / 128 - 1)),
        row_(group_ * kGroupRows + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4),
        scale_log2_(args.softmax_scale * kLog2E) {}

  __device__ __forceinline__ void run() {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) o_[i] = 0.0f;
    if constexpr (kAhead) {
      run_ahead();
    } else {
      run_apart();
    }
  }

 private:
  // Named barriers, of each warpgroup.
  static constexpr int kTailBarriers = 1;            // for cleared values
  static constexpr int kTurnBarriers = 1 + kGroups;  // for its turn at ordering products
  static constexpr int kTurnThreads = 2 * 128;       // of the warpgroup that passes it and of the one that takes it

  /// S = Q K^T of a step beside the stores or the scaling that the step before left, O += P V of the step before beside
  /// the exponentials of this one. The warpgroups take turns so that one's exponentials hide behind the others'
  /// products.
  __device__ __forceinline__ void run_ahead() {
    if (group_ + 1 == kGroups) pass_turn();  // the first turn is the first warpgroup's
    std::uint32_t p[kKeys / 4];
    bool values_leave = false;  // after the product under way
    // What the product before last left: scaled where the next adds to it, stored where it was the tile's last.
    const auto take_last = [&] {
      if (key_tile_ > 0) {
        scale_rows<kDim>(o_, shrink_);
      } else {
        store_ended();
      }
    };
    const auto end_probability_value = [&] {
      wgmma_wait<0>();
      hold_registers(o_);
      if (values_leave) release_values();
    };

    tile_ = begin_tile();
    while (tile_.key_tiles > 0) {
      if (passes(tile_)) {
        pass_tile();
        tile_ = begin_tile();
        continue;
      }
      read_places(places_);
      wait_for_keys(tile_);
      wait_for_turn();
      query_key(queries(), keys());
      pass_turn();
      wgmma_wait<0>();
      hold_registers(scores_);
      key_tile_ = 0;
      after_query_key(tile_, 0);
      state_ = RowState{};
      state_.template update<kKeys, true>(scores_, scale_log2_, shrink_);
      values_leave = false;
      TileInfo next;
      while (true) {
        // Here and not behind the exponentials, where ptxas would wait before them.
        end_probability_value();
        pack_rows<T, kKeys>(p, scores_);
        const bool ends = key_tile_ + 1 == tile_.key_tiles;
        next = tile_;
        std::uint32_t next_places[2];
        if (ends) {
          next = begin_tile();
          if (next.key_tiles == 0 || passes(next)) break;
          read_places(next_places);
        }
        const int next_key_tile = ends ? 0 : key_tile_ + 1;
        wait_for_keys(next);
        const std::uint64_t q_tile = queries(), k_tile = keys(), v_tile = values();
        wait_for_turn();
        query_key(q_tile, k_tile);
        take_last();  // beside the product of queries and keys
        wait_for_values();
        probability_value(p, v_tile);
        pass_turn();
        wgmma_wait<1>();
        hold_registers(scores_);
        after_query_key(next, next_key_tile);
        if (ends) {
          end_rows();
          state_ = RowState{};
          places_[0] = next_places[0], places_[1] = next_places[1];
        }
        state_.template update<kKeys, false>(scores_, scale_log2_, shrink_);
        hold_registers(scores_);  // the exponentials beside the product of probabilities and values
        hold_registers(state_.sum);
        values_leave = tile_.keys_leave();
        tile_ = next;
        key_tile_ = next_key_tile;
      }
      take_last();
      wait_for_values();
      probability_value(p, values());
      values_leave = tile_.keys_leave();
      end_probability_value();
      end_rows();
      store_ended();
      ended_ = EndedRows<T>{};
      tile_ = next;
    }
  }

  /// One step after the other; the other warpgroups' steps hide what this one waits for. At a tile's end its
  /// log-sum-exps and the next tile's beginning go beside the last product.
  __device__ __forceinline__ void run_apart() {
    tile_ = begin_tile();
    while (tile_.key_tiles > 0) {
      if (passes(tile_)) {
        pass_tile();
        tile_ = begin_tile();
        continue;
      }
      read_places(places_);
      state_ = RowState{};
      TileInfo next;
      key_tile_ = 0;
      wait_for_keys(tile_);
      query_key(queries(), keys());
      // ptxas waits for the product here, since this reads accumulators; rounding them before it was no faster.
      store_ended();
      wgmma_wait<0>();
      hold_registers(scores_);
      after_query_key(tile_, 0);
      state_.template update<kKeys, true>(scores_, scale_log2_, shrink_);
      while (true) {
        std::uint32_t p[kKeys / 4];
        pack_rows<T, kKeys>(p, scores_);
        wait_for_values();
        probability_value(p, values());
        const bool ends = key_tile_ + 1 == tile_.key_tiles;
        if (ends) {
          end_rows();
          next = begin_tile();
        }
        wgmma_wait<0>();
        hold_registers(o_);
        hold_registers(p);
        if (tile_.keys_leave()) release_values();
        if (ends) break;
        ++key_tile_;
        wait_for_keys(tile_);
        query_key(queries(), keys());
        wgmma_wait<0>();
        hold_registers(scores_);
        after_query_key(tile_, key_tile_);
        state_.template update<kKeys, false>(scores_, scale_log2_, shrink_);
        scale_rows<kDim>(o_, shrink_);
      }
      tile_ = next;
    }
    store_ended();
  }

  __device__ __forceinline__ void wait_for_turn() const {
    named_sync(kTurnBarriers + group_, kTurnThreads);
  }
  __device__ __forceinline__ void pass_turn() const {
    named_arrive(kTurnBarriers + (group_ + 1 == kGroups ? 0 : group_ + 1), kTurnThreads);
  }

  /// Waits for a tile, whose rows then are in storage.q at the place of queries.
  __device__ __forceinline__ TileInfo begin_tile() const {
    storage_.q_full[q_place_.stage].wait(q_place_.parity);
    return storage_.info[q_place_.stage];
  }
  __device__ __forceinline__ void read_places(std::uint32_t (&to)[2]) const {
    to[0] = storage_.place[q_place_.stage][row_];
    to[1] = storage_.place[q_place_.stage][row_ + 8];
  }
  /// Whether the tile's rows are all other warpgroups'.
  __device__ __forceinline__ bool passes(const TileInfo& tile) const {
    return group_ >= tile.groups;
  }
  /// The steps of such a tile, without products.
  __device__ __forceinline__ void pass_tile() {
    for (key_tile_ = 0; key_tile_ < tile_.key_tiles; ++key_tile_) {
      if (tile_.keys_arrive()) {
        storage_.k_full[k_place_.stage].wait(k_place_.parity);
        storage_.v_full[v_place_.stage].wait(v_place_.parity);
      }
      if constexpr (kAhead) {
        wait_for_turn();
        pass_turn();
      }
      if (tile_.keys_leave()) {
        release_keys();
        release_values();
      }
    }
    release_queries();
  }

  __device__ __forceinline__ void release_queries() {
    storage_.q_empty[q_place_.stage].arrive_by_warp();
    q_place_.advance();
  }
  __device__ __forceinline__ void release_keys() {
    storage_.k_empty[k_place_.stage].arrive_by_warp();
    k_place_.advance();
  }
  __device__ __forceinline__ void release_values() {
    storage_.v_empty[v_place_.stage].arrive_by_warp();
    v_place_.advance();
  }

  __device__ __forceinline__ std::uint64_t queries() const {
    return uniform_descriptor(tile_descriptor<Major::K>(storage_.q[q_place_.stage], kRows, group_ * kGroupRows));
  }
  __device__ __forceinline__ std::uint64_t keys() const {
    return uniform_descriptor(tile_descriptor<Major::K>(storage_.k[k_place_.stage], kKeys));
  }
  __device__ __forceinline__ std::uint64_t values() const {
    return uniform_descriptor(tile_descriptor<Major::MN>(storage_.v[v_place_.stage], kKeys));
  }

  __device__ __forceinline__ void query_key(std::uint64_t q_tile, std::uint64_t k_tile) {
    wgmma_fence();
    wgmma_tiles<T, kKeys, kDim / 16, Major::K, Major::K>(scores_, q_tile, kRows, k_tile, kKeys, false);
    wgmma_commit();
  }
  /// Once the scores of a step of `tile` are there.
  __device__ __forceinline__ void after_query_key(const TileInfo& tile, int key_tile) {
    if (tile.keys_leave()) release_keys();
    if (key_tile + 1 < tile.key_tiles) return;
    release_queries();
    if (tile.tail < kKeys) mask_tail<kKeys>(scores_, tile.tail);
  }
  __device__ __forceinline__ void wait_for_keys(const TileInfo& tile) const {
    if (tile.keys_arrive()) storage_.k_full[k_place_.stage].wait(k_place_.parity);
  }
  __device__ __forceinline__ void wait_for_values() const {
    if (!tile_.keys_arrive()) return;
    storage_.v_full[v_place_.stage].wait(v_place_.parity);
    if (key_tile_ + 1 == tile_.key_tiles && tile_.tail < kKeys) {
      clear_tail<T, kDim, kKeys>(storage_.v[v_place_.stage], tile_.tail, kTailBarriers + group_);
    }
  }
  __device__ __forceinline__ void probability_value(const std::uint32_t (&p)[kKeys / 4], std::uint64_t v_tile) {
    wgmma_fence();
    wgmma_tiles<T, kDim, kKeys / 16, Major::MN>(o_, p, v_tile, kKeys, key_tile_ > 0);
    wgmma_commit();
  }

  /// All keys of the tile's rows have been seen, and only their last product may be under way.
  __device__ __forceinline__ void end_rows() {
    const int lane = threadIdx.x % 4;
    float lse[2];
    state_.finish(args_.softmax_scale, ended_.factor, lse);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      ended_.out[i] = nullptr;
      if (places_[i] == kNoPlace) continue;
      ended_.out[i] = static_cast<T*>(args_.partials.out) + static_cast<std::int64_t>(places_[i]) * kDim + lane * 8;
      // All bits set mean "no partial here"; a NaN of this kernel must not look like that.
      if (lane == 0) args_.partials.lse[places_[i]] = isnan(lse[i]) ? __int_as_float(0x7fffffff) : lse[i];
    }
  }
  __device__ __forceinline__ void store_ended() const {
    store_rows<T, kDim>(ended_, o_);
  }

  const HistoryArgs& args_;
  Storage& storage_;
  const int group_, row_;  // of the thread's rows in the tile the first; the other is 8 behind it
  const float scale_log2_;
  RingPlace<kQueryStages> q_place_;
  RingPlace<kKeyStages> k_place_, v_place_;
  TileInfo tile_;
  int key_tile_ = 0;
  std::uint32_t places_[2] = {kNoPlace, kNoPlace};
  RowState state_;
  float scores_[kKeys / 2], o_[kDim / 2], shrink_[2];
  EndedRows<T> ended_;
};

}  // namespace moba::cuda::history
