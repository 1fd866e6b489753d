// How a call of attend_backward is cut into rounds and chunks, and the scratch that they need: from shapes alone.
#pragma once

#include <cstdint>

namespace moba::cuda {

struct BackwardShapes {
  std::int64_t rows, keys, heads, kv_heads, dim;
  std::int64_t budget, lists;                    // slots of a list, selection heads
  std::int64_t block_size, block_rows, longest;  // of the longest sequence, in keys
};

/// A round is some rows of some key/value heads, which one inverse serves; its chunks are key/value heads whose places
/// are held together. All rows and heads are one round where that fits.
struct BackwardPlan {
  /// Scratch may be `limit` bytes and 4 for each element of q, which dense flash attention holds as well; where units
  /// take turns, these for sums of dk and dv alone. Error (kWorkspace) where 128 rows of one key/value head do not fit.
  BackwardPlan(const BackwardShapes& shapes, std::int64_t limit);

  std::int64_t round_rows, round_kv_heads, chunk_kv_heads, chunks;  // chunks of a round
  std::int64_t unit_tiles, tile_limit;
  bool turns;  // whether the units of a block take turns

  // Sizes of scratch, in elements; `sums` are none where dk and dv are not added over rounds.
  std::int64_t chunk_items, chunk_units, places, slabs;
  std::int64_t turn_tiles, turn_rows, sums;

  std::int64_t group() const { return shapes_.heads / shapes_.kv_heads; }
  /// The selection heads of query heads [first, first + count).
  std::int64_t first_list(std::int64_t head) const { return head * shapes_.lists / shapes_.heads; }
  std::int64_t lists_of(std::int64_t first, std::int64_t count) const {
    return first_list(first + count - 1) - first_list(first) + 1;
  }
  /// All scratch of the call at a time, but for the block map.
  std::int64_t bytes() const { return bytes_; }

 private:
  bool try_round(std::int64_t rows, std::int64_t round_kv_heads, std::int64_t kv_heads);

  BackwardShapes shapes_;
  std::int64_t limit_, beside_;  // bytes
  std::int64_t allowed_ = 0, bytes_ = 0;
};

}  // namespace moba::cuda
