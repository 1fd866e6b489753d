// dq of rows from their places: what each slot and unit left, added in order.
//
// The places of a row lie one after the other, so the copy engine brings them: a warp has pieces of its rows on their
// way into a ring of its own, and holds no registers for them. What must be known of a row is found for 32 rows at
// once, by a lane each.
#pragma once

#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/sm90/backward_lanes.cuh"
#include "cuda/sm90/sequence_lookup.cuh"

namespace moba::cuda {

inline constexpr int kPieceStages = 4;
inline constexpr int kPieceBytes = 3072;

struct PieceStage {
  alignas(128) std::uint16_t places[kPieceBytes / 2];
  Barrier full;
};

/// Of one warp; all lanes are at the same place.
template <class T, int kDim>
class PlaceSums {
 public:
  using Row = WarpRow<T, kDim>;

  /// `stages`: the warp's, with barriers of one arrival.
  __device__ PlaceSums(const BackwardChunk& chunk, PieceStage* stages)
      : chunk_(chunk),
        stages_(stages),
        lookup_{chunk.sequences, chunk.sequence_count, chunk.block_size},
        all_listed_((std::uint64_t{1} << chunk.budget) - 1),
        row_bytes_((chunk.budget + 1) * chunk.unit_tiles * (kDim * 2)) {}

  __device__ void run() {
    next_row();
    Rows now = ahead_;
#pragma unroll 1
    for (int stage = 0; stage < kPieceStages; ++stage) order(stages_[stage]);
    RingPlace<kPieceStages> ring;
    while (now.count > 0) {
      for (int row = 0; row < now.count; ++row) {
        const int places = __shfl_sync(kAll, now.places, row);
        const std::uint64_t listed = __shfl_sync(kAll, now.listed, row);
        float sums[Row::kShare] = {};
        int place = 0;
        do {  // a row without places has one empty piece
          PieceStage& stage = stages_[ring.stage];
          const int count = min(kPiece, places - place);
          stage.full.wait(ring.parity);
          if (listed == all_listed_) {
            add_all(stage, count, sums);
          } else {
            add_listed(stage, place, count, listed, sums);
          }
          fence_async_proxy();  // the copy engine's next stores come after these loads
          __syncwarp();
          order(stage);
          ring.advance();
          place += count;
        } while (place < places);
        Row::store(reinterpret_cast<T*>(__shfl_sync(kAll, now.dq, row)), sums);
      }
      if (ahead_.first == now.first) return;
      now = ahead_;
    }
  }

 private:
  static constexpr unsigned kAll = 0xffffffffu;
  static constexpr int kPiece = kPieceBytes / (kDim * 2);  // places of a piece

  /// Consecutive rows of the chunk (times heads), at most 32; each lane knows of one.
  struct Rows {
    std::uint32_t first = 0;
    int count = 0;
    int places = 0;  // 0 for a row that sees no key
    std::uint64_t listed = 0;
    std::uint64_t dq = 0;  // address
  };

  static __device__ __forceinline__ int lane() {
    return Row::lane();
  }

  __device__ __forceinline__ Rows take_rows() {
    const std::uint32_t heads = static_cast<std::uint32_t>(chunk_.kv_heads * chunk_.group);
    const std::int64_t all = chunk_.rows * heads, first = take_number(&chunk_.counters[kNextRows]) * 32;
    Rows rows;
    if (first >= all) return rows;
    rows.first = static_cast<std::uint32_t>(first);
    rows.count = static_cast<int>(min(all - first, std::int64_t{32}));
    if (lane() >= rows.count) return rows;
    const std::uint32_t index = rows.first + lane(), of_chunk = index / heads;
    const std::int64_t row = chunk_.first_row + of_chunk;
    const std::int32_t head = chunk_.first_kv_head * chunk_.group + static_cast<std::int32_t>(index - of_chunk * heads);
    rows.dq = reinterpret_cast<std::uint64_t>(static_cast<T*>(chunk_.dq.data) + row * chunk_.dq.token_stride +
                                              head * chunk_.dq.head_stride);
    const int own = static_cast<int>(lookup_.own_block(row));
    const std::int64_t position = row + lookup_.shift;
    if (position < 0) return rows;
    const int own_units =
        chunk_.unit_tiles == 1 ? 1 : static_cast<int>(position - own * chunk_.block_size) / kUnitKeys + 1;
    rows.places = chunk_.budget * chunk_.unit_tiles + own_units;
    const std::int32_t list_head =
        static_cast<std::int32_t>(static_cast<std::int64_t>(head) * chunk_.selection_heads / chunk_.heads);
    rows.listed =
        listed_slots(chunk_.blocks + row * chunk_.blocks_row_stride + list_head * chunk_.blocks_head_stride, own);
    return rows;
  }

  /// The slots that count: the rule of for_each_listed_block() in src/sequences.h.
  __device__ __forceinline__ std::uint64_t listed_slots(const std::int32_t* list, int own) const {
    constexpr int kAtOnce = 8;
    std::uint64_t listed = 0;
    int previous = -1;
    for (int first = 0; first < chunk_.budget; first += kAtOnce) {
      int blocks[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) blocks[i] = first + i < chunk_.budget ? __ldg(list + first + i) : -1;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (blocks[i] <= previous || blocks[i] >= own) continue;
        listed |= std::uint64_t{1} << (first + i);
        previous = blocks[i];
      }
    }
    return listed;
  }

  /// The next row to be brought, if there is one.
  __device__ __forceinline__ void next_row() {
    place_ = 0;
    if (++row_ >= ahead_.count) {
      const Rows rows = take_rows();
      more_ = rows.count > 0;
      if (!more_) return;
      ahead_ = rows;
      row_ = 0;
      from_ = static_cast<const char*>(chunk_.partials) + static_cast<std::uint64_t>(ahead_.first) * row_bytes_;
    } else {
      from_ += row_bytes_;
    }
    places_ = __shfl_sync(kAll, ahead_.places, row_);
  }

  /// Has the next piece brought.
  __device__ __forceinline__ void order(PieceStage& stage) {
    if (!more_) return;
    const int count = min(kPiece, places_ - place_);
    if (lane() == 0) {
      stage.full.arrive_expecting(static_cast<std::uint32_t>(count) * (kDim * 2));
      if (count > 0) {
        load_bulk(stage.places, from_ + place_ * (kDim * 2), static_cast<std::uint32_t>(count) * (kDim * 2),
                  &stage.full);
      }
    }
    place_ += count;
    if (place_ >= places_) next_row();
  }

  static __device__ __forceinline__ void add_all(const PieceStage& stage, int count, float (&sums)[Row::kShare]) {
    constexpr int kAtOnce = 4;
    const std::uint16_t* from = stage.places;
    for (; count >= kAtOnce; count -= kAtOnce, from += kAtOnce * kDim) {
      typename Row::Words words[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) words[i] = Row::load_shared(from + i * kDim);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) words[i].add_to(sums);
    }
    for (; count > 0; --count, from += kDim) Row::load_shared(from).add_to(sums);
  }

  /// Places whose slots are not listed hold anything.
  __device__ __forceinline__ void add_listed(const PieceStage& stage, int first, int count, std::uint64_t listed,
                                             float (&sums)[Row::kShare]) const {
    listed |= std::uint64_t{1} << chunk_.budget;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const int slot = min((first + i) / chunk_.unit_tiles, chunk_.budget);
      if (listed >> slot & 1u) Row::load_shared(stage.places + i * kDim).add_to(sums);
    }
  }

  const BackwardChunk& chunk_;
  PieceStage* stages_;
  RowLookup lookup_;
  std::uint64_t all_listed_;
  std::int32_t row_bytes_;
  // Of the piece to be ordered next.
  bool more_ = true;
  Rows ahead_;
  int row_ = 0, place_ = 0, places_ = 0;
  const char* from_ = nullptr;  // the row's places
};

}  // namespace moba::cuda
