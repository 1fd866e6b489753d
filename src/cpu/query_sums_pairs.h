// dq of a chunk of bfloat16 rows, by products of pairs.
#pragma once

#include "cpu/keys_ahead.h"
#include "cpu/pair_slopes.h"
#include "cpu/tiles.h"

namespace moba::cpu {

/// What one thread needs, and its work on one chunk and one key/value head.
class PairQuerySums {
 public:
  static constexpr std::int64_t kRowTile = kPairRows;
  static std::int64_t bytes(const AttendBackwardArgs& args, const Dims& dims, std::int64_t ids, std::int64_t blocks);
  PairQuerySums(Context& context, const AttendBackwardArgs& args, const Dims& dims, const Sequences& sequences,
                const RowTerms& terms, std::int64_t ids, std::int64_t blocks);

  void run(const Chunk& chunk, std::int64_t kv_head);

 private:
  void load(const Chunk& chunk, std::int64_t kv_head);
  void add_tile(const RowTile& tile);

  Context& context_;
  const AttendBackwardArgs& args_;
  const Dims& dims_;
  const Sequences& sequences_;
  const RowTerms& terms_;
  const PairKernels& kernel_;
  std::int64_t q_row_, dout_row_;
  std::int64_t keys_ = 0;  // of the tile at hand
  KeysAhead coming_;
  bool k_is_finite_ = true;
  Scratch<Pair> q_, dout_, k_panels_, weights_;
  Scratch<float> rows_, dq_, lse_, delta_, dlse_;
  PairSlopes operands_;
  BlockLists lists_;
};

}  // namespace moba::cpu
