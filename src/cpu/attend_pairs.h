// The forward pass of a chunk of bfloat16 rows by products of pairs; see pairs.h for the layouts.
#pragma once

#include "cpu/attend_rows.h"
#include "cpu/keys_ahead.h"

namespace moba::cpu {

/// What one thread needs, and its work on one chunk and one key/value head.
class PairFold {
 public:
  static constexpr std::int64_t kRowTile = kPairRows;
  static std::int64_t bytes(const AttendRows& call, std::int64_t ids, std::int64_t blocks);
  PairFold(const AttendRows& call, std::int64_t ids, std::int64_t blocks);

  /// Loads the chunk's rows, folds its keys in, a tile at a time in ascending order, and writes out and lse.
  void run(const Chunk& chunk, std::int64_t kv_head);

 private:
  void fold_tile(const RowTile& tile);
  void add_values(std::int64_t key, const PairTile& scores, const float* factor);

  const AttendRows& call_;
  const PairKernels& kernel_;
  ReadyForProducts ready_;
  std::int64_t row_;       // pairs of a row of q and k in scratch
  std::int64_t keys_ = 0;  // of the tile at hand
  KeysAhead coming_;
  bool v_is_finite_ = true;
  Scratch<Pair> q_, k_, v_, lanes_, weights_;
  Scratch<float> scores_, rows_, out_, shift_, sum_;
  Scratch<std::byte> gathered_;
  BlockLists lists_;
};

}  // namespace moba::cpu
