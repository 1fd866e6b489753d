// The gate: products of query rows with block representatives, a tile at a time. Shared by `score` and `select`.
//
// A score is one chain of additions over the heads of a list and the head dim, in that order, whatever the tile: one
// shot, chunked prefill and decode therefore choose the same blocks, bit for bit.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/block_rows.h"

namespace moba::cpu {

inline constexpr std::int64_t kBlockTile = 256;  // representatives of one product
inline constexpr std::int64_t kGateRows =
    512;  // rows of a task: packing a tile of representatives is 1% of its products

/// Scores of up to `rows` rows of one list of one sequence; what one thread needs.
class Gate {
 public:
  /// `heads_of_list` query heads share a list, each with its own representatives' head.
  Gate(Context& context, const ConstTensorView& q, const BlockRows& representatives, std::int64_t rows,
       std::int64_t heads_of_list)
      : q_(q),
        representatives_(representatives),
        dim_(q.shape[2]),
        row_(padded(dim_)),
        heads_of_list_(heads_of_list),
        kernels_(kernels()),
        queries_(context, rows * heads_of_list * row_, "query rows"),
        packed_(context, kBlockTile * row_, "a tile of representatives"),
        staging_(context, 4 * row_, "representatives to transpose"),
        scores_(context, kRowTile * kBlockTile, "a tile of scores") {}

  static std::int64_t bytes(std::int64_t dim, std::int64_t rows, std::int64_t heads_of_list) {
    return 4 * ((rows * heads_of_list + kBlockTile + 4) * padded(dim) + kRowTile * kBlockTile);
  }

  /// Calls use(row, first block, count, scores) for tiles of past blocks in ascending order, for each of the packed
  /// rows [row_begin, row_begin + rows) of list `list` (of q.heads / heads_of_list).
  template <class Use>
  void run(const Sequence& sequence, std::int64_t block_size, std::int64_t list, std::int64_t row_begin,
           std::int64_t rows, Use&& use) {
    for (std::int64_t h = 0; h < heads_of_list_; ++h) {
      kernels_.load_rows(rows_of(q_, row_begin, list * heads_of_list_ + h, rows), 1.0f,
                         queries_.data() + h * rows * row_, row_);
    }
    const auto past = [&](std::int64_t row) { return std::max<std::int64_t>(0, sequence.position(row)) / block_size; };
    const std::int64_t most = past(row_begin + rows - 1);
    for (std::int64_t block = 0; block < most; block += kBlockTile) {
      const std::int64_t count = std::min(kBlockTile, most - block);
      for (std::int64_t first = 0; first < rows; first += kRowTile) {
        const std::int64_t here = std::min(kRowTile, rows - first);
        const std::int64_t seen = std::min(count, past(row_begin + first + here - 1) - block);
        if (seen <= 0) continue;
        for (std::int64_t h = 0; h < heads_of_list_; ++h) {
          pack(sequence, block, count, list * heads_of_list_ + h);
          kernels_.multiply({.m = here,
                             .n = seen,
                             .k = dim_,
                             .a = queries_.data() + (h * rows + first) * row_,
                             .a_row = row_,
                             .b = packed_.data(),
                             .b_panel_stride = dim_ * kPanel,
                             .c = scores_.data(),
                             .c_row = kBlockTile,
                             .accumulate = h > 0});
        }
        for (std::int64_t i = 0; i < here; ++i) {
          const std::int64_t row = row_begin + first + i;
          const std::int64_t visible = std::min(count, past(row) - block);
          if (visible > 0) use(row, block, visible, scores_.data() + i * kBlockTile);
        }
      }
    }
  }

 private:
  /// Packs representatives [first, first + count) for a query head, unless they are what is packed already.
  void pack(const Sequence& sequence, std::int64_t first, std::int64_t count, std::int64_t head) {
    const std::int64_t kv_head = head * representatives_.heads() / q_.shape[1];
    if (sequence.index == packed_sequence_ && first == packed_first_ && count == packed_count_ &&
        kv_head == packed_head_) {
      return;
    }
    kernels_.pack_transposed(representatives_(sequence, first, count, kv_head), staging_.data(), packed_.data());
    packed_sequence_ = sequence.index;
    packed_first_ = first;
    packed_count_ = count;
    packed_head_ = kv_head;
  }

  const ConstTensorView& q_;
  const BlockRows& representatives_;
  std::int64_t dim_, row_, heads_of_list_;
  const Kernels& kernels_;
  Scratch<float> queries_, packed_, staging_, scores_;
  std::int64_t packed_sequence_ = -1, packed_first_ = -1, packed_count_ = -1, packed_head_ = -1;
};

}  // namespace moba::cpu
