// Shared memory of the products of attend_backward: the unit's keys and values, a ring of tiles of query rows, and the
// slopes dS of two tiles.
#pragma once

#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/sm90/backward.h"

namespace moba::cuda {

template <int kDim>
struct BackwardShape {
  static constexpr int kRows = tile_rows_of(kDim);
  static constexpr int kStages = 3;
  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kRowPanels = kRows / 64;
};

/// What consumers need to know of a tile.
struct TileHeader {
  std::int32_t item;   // its index; -1: no more work
  std::int32_t flags;  // of TileFlag
};
enum TileFlag { kFirstTile = 1, kLastTile = 2, kMaskedTile = 4 };

inline constexpr std::uint32_t kNoPlace = 0xffffffffu;

template <int kDim>
struct BackwardStage {
  using Shape = BackwardShape<kDim>;
  alignas(1024) std::uint16_t q[Shape::kRows * kDim];
  alignas(1024) std::uint16_t dout[Shape::kRows * kDim];
};

/// A tile of dq on its way to partials. Rounded rows start in different banks, fp32 ones lie as in partials: their
/// pieces of 64 bytes change places in odd rows, which puts those that are stored together into different banks.
template <int kDim, bool kTurns>
struct GradientRows {
  static constexpr int kRowBytes = kTurns ? kDim * 4 : kDim * 2 + 16;
  static constexpr int kBytes = BackwardShape<kDim>::kRows * kRowBytes;
};

inline constexpr int kItemStages = 4;

template <int kDim, bool kTurns>
struct BackwardShared {
  using Shape = BackwardShape<kDim>;
  alignas(1024) std::uint16_t k[kUnitKeys * kDim];
  alignas(1024) std::uint16_t v[kUnitKeys * kDim];
  BackwardStage<kDim> stages[Shape::kStages];
  // dS^T of a tile and of the one before, of which dQ is still to be made: R / 64 panels of [128 keys, 64 rows].
  alignas(1024) std::uint16_t slopes[2][kUnitKeys * Shape::kRows];
  alignas(16) RowTerm terms[Shape::kStages][Shape::kRows];
  alignas(16) std::int32_t last_keys[Shape::kStages][Shape::kRows];       // the last key of the unit that the row sees
  alignas(128) char query_gradients[GradientRows<kDim, kTurns>::kBytes];  // dq of a tile
  TileHeader headers[Shape::kStages];
  Barrier full[Shape::kStages], empty[Shape::kStages];
  Barrier slopes_empty[2];
  Barrier keys_full, keys_empty;
  Barrier gradients_full[kTurns ? 2 : 1];  // with turns, of every second tile: one for each mover
  Barrier gradients_empty;
  std::int32_t next_item;
  // With turns: the items that this thread block works on, in order; -1: no more.
  std::int32_t items[kItemStages];
  Barrier item_full[kItemStages], item_empty[kItemStages];
};

}  // namespace moba::cuda
