// The first warpgroup of the products of attend_backward where tiles are packed: single threads that have the copy
// engine bring tiles of query rows and take their dq away, and a warp that copies keys and values.
#pragma once

#include "cuda/sm90/backward_shared.cuh"
#include "cuda/sm90/backward_tiles.cuh"

namespace moba::cuda {

/// What its warps have in common: each walks through the items of the thread block, which the first one takes.
template <int kDim>
class PackedWalk {
 public:
  using Shape = BackwardShape<kDim>;
  using Shared = BackwardShared<kDim, true>;
  static constexpr int kRows = Shape::kRows;

  __device__ PackedWalk(const BackwardChunk& chunk, Shared& shared) : chunk_(chunk), shared_(shared) {}

 protected:
  /// Calls visit(index, item) for each item.
  template <class Visit>
  __device__ __forceinline__ void for_each_item(const Visit& visit) {
    for (;;) {
      const int stage = place_.stage;
      if (threadIdx.x == 0) {
        shared_.item_empty[stage].wait(place_.parity ^ 1u);
        const int taken = atomicAdd(&chunk_.counters[kNextItem], 1);
        shared_.items[stage] = taken < chunk_.counters[kItemCount] ? taken : -1;
        shared_.item_full[stage].arrive();
      }
      __syncwarp();
      shared_.item_full[stage].wait(place_.parity);
      const int index = shared_.items[stage];
      __syncwarp();
      if (lane() == 0) shared_.item_empty[stage].arrive();
      place_.advance();
      if (index < 0) return;
      visit(index, chunk_.items[index]);
    }
  }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) & 31; }

  const BackwardChunk& chunk_;
  Shared& shared_;

 private:
  RingPlace<kItemStages> place_;
};

/// Brings tiles of query rows.
template <int kDim>
class TileFeeder : public PackedWalk<kDim> {
 public:
  using Walk = PackedWalk<kDim>;
  using Walk::chunk_, Walk::shared_, Walk::kRows, Walk::lane;
  using Walk::Walk;

  __device__ void run() {
    this->for_each_item([&](int index, const BackwardItem& item) {
      for_each_tile<kRows>(chunk_, item, [&](const PackedTile& tile) { feed(index, item.unit, tile); });
    });
    shared_.empty[place_.stage].wait(place_.parity ^ 1u);
    if (lane() == 0) {
      shared_.headers[place_.stage] = {-1, 0};
      shared_.full[place_.stage].arrive();
    }
  }

 private:
  __device__ __forceinline__ void feed(int index, const KeyUnit& unit, const PackedTile& tile) {
    const bool own = tile.own_row >= 0;
    const int diagonal = own ? unit.own_key + tile.own_row - unit.own_row : kUnitKeys;
    const int stage = place_.stage;
    shared_.empty[stage].wait(place_.parity ^ 1u);
#pragma unroll
    for (int row = 0; row < kRows; row += 32) {
      shared_.last_keys[stage][row + lane()] = min(own ? diagonal + row + lane() : kUnitKeys, unit.keys - 1);
    }
    __syncwarp();
    if (lane() == 0) {
      const bool masked = unit.keys < kUnitKeys || diagonal < kUnitKeys - 1;
      shared_.headers[stage] = {
          index, (tile.first ? kFirstTile : 0) | (tile.last ? kLastTile : 0) | (masked ? kMaskedTile : 0)};
      constexpr int kElements = kRows * kDim;
      const std::uint16_t* rows = chunk_.tiles + static_cast<std::uint64_t>(tile.number) * (2 * kElements);
      Barrier* full = &shared_.full[stage];
      full->arrive_expecting(2 * kElements * 2 + kRows * sizeof(RowTerm));
      load_bulk(shared_.stages[stage].q, rows, kElements * 2, full);
      load_bulk(shared_.stages[stage].dout, rows + kElements, kElements * 2, full);
      load_bulk(shared_.terms[stage], chunk_.tile_terms + static_cast<std::uint64_t>(tile.number) * kRows,
                kRows * sizeof(RowTerm), full);
    }
    place_.advance();
  }

  RingPlace<BackwardShape<kDim>::kStages> place_;
};

/// Copies keys and values; zeros after the last, so that nothing of another block can spoil a product.
template <int kDim>
class KeyFeeder : public PackedWalk<kDim> {
 public:
  using Walk = PackedWalk<kDim>;
  using Walk::chunk_, Walk::shared_, Walk::lane;
  using Walk::Walk;

  __device__ void run() {
    std::uint32_t parity = 0;
    this->for_each_item([&](int, const BackwardItem& item) {
      shared_.keys_empty.wait(parity ^ 1u);
      parity ^= 1u;
      copy(chunk_.k, item.unit, shared_.k);
      copy(chunk_.v, item.unit, shared_.v);
      copy_async_commit();
      copy_async_wait<0>();
      fence_async_proxy();
      __syncwarp();
      if (lane() == 0) shared_.keys_full.arrive();
    });
  }

 private:
  __device__ __forceinline__ void copy(const RowsOf& tensor, const KeyUnit& unit, std::uint16_t* tile) const {
    constexpr int kChunks = kDim / 8, kAtOnce = 32 / kChunks;
    const int chunk = lane() % kChunks;
    const auto* from = static_cast<const std::uint16_t*>(tensor.data) + unit.first_key * tensor.token_stride +
                       unit.kv_head * tensor.head_stride + chunk * 8;
#pragma unroll 4
    for (int key = lane() / kChunks; key < kUnitKeys; key += kAtOnce) {
      const bool valid = key < unit.keys;
      copy_16_async(shared_address(tile) + swizzled_offset(kUnitKeys, key, chunk),
                    from + (valid ? key : 0) * tensor.token_stride, valid);
    }
  }
};

/// Takes dq of tiles away, of every second one: while the dq of one tile is on its way to memory, which the turn after
/// it waits for, the other mover waits for its turn at the next.
template <int kDim>
class GradientMover : public PackedWalk<kDim> {
 public:
  using Walk = PackedWalk<kDim>;
  using typename Walk::Shared;
  using Walk::chunk_, Walk::shared_, Walk::kRows, Walk::lane;

  __device__ GradientMover(const BackwardChunk& chunk, Shared& shared, int mover)
      : Walk(chunk, shared), mover_(mover) {}

  __device__ void run() {
    int next = 0;
    this->for_each_item([&](int, const BackwardItem& item) {
      for_each_tile<kRows>(chunk_, item, [&](const PackedTile& tile) {
        if (next == mover_ && lane() == 0) move(tile.number, item.unit.part_of_block);
        __syncwarp();
        next ^= 1;
      });
    });
  }

 private:
  /// After unit part - 1 of the block has added its own; the unit after this one waits for it.
  __device__ __forceinline__ void move(std::uint32_t number, int part) {
    constexpr int kBytes = GradientRows<kDim, true>::kBytes;
    float* to = static_cast<float*>(chunk_.partials) + static_cast<std::uint64_t>(number) * (kBytes / 4);
    const std::uint32_t from = shared_address(shared_.query_gradients);
    std::int32_t* turn = chunk_.turns + number;
    if (part > 0) {
      while (load_acquire(turn) != part) {
      }
    }
    shared_.gradients_full[mover_].wait(parity_);
    parity_ ^= 1u;
    if (part == 0) {
      store_bulk(to, from, kBytes);
    } else {
      add_bulk(to, from, kBytes);
    }
    wait_bulk_reads();
    shared_.gradients_empty.arrive();
    wait_bulk_stores();
    store_release(turn, part + 1);
  }

  const int mover_;
  std::uint32_t parity_ = 0;
};

}  // namespace moba::cuda
