// What both passes of the backward read of each query row, and the products both begin with.
#pragma once

#include <cstdint>

#include "cpu/problem.h"

namespace moba::cpu {

/// lse in units of log2, delta = out · dout and dlse of every row of every head: float32 [H, Tq] each.
class RowTerms {
 public:
  RowTerms(Context& context, const AttendBackwardArgs& args);
  static std::int64_t bytes(const AttendBackwardArgs& args) { return 12 * args.q.shape[0] * args.q.shape[1]; }

  /// Indexed by packed row.
  RowTermsView of_head(std::int64_t head) const {
    return {lse_.data() + head * rows_, delta_.data() + head * rows_, dlse_.data() + head * rows_};
  }

 private:
  std::int64_t rows_;
  Scratch<float> lse_, delta_, dlse_;
};

/// A tile of keys ready for S = Q Kᵀ and dP = dO Vᵀ, and room for both.
struct KeyOperands {
  KeyOperands(Context& context, const Dims& dims)
      : k(context, kKeyTile * padded(dims.dim), "a tile of keys"),
        v(context, kKeyTile * padded(dims.value_dim), "a tile of values"),
        staging(context, 4 * padded(std::max(dims.dim, dims.value_dim)), "rows to transpose"),
        scores(context, kRowTile * kKeyTile, "a tile of scores"),
        slopes(context, kRowTile * kKeyTile, "a tile of gradients of scores") {}

  static std::int64_t bytes(const Dims& dims) {
    return 4 * ((kKeyTile + 4) * (padded(dims.dim) + padded(dims.value_dim)) + 2 * kRowTile * kKeyTile);
  }

  void pack(const Kernels& kernel, const Rows& k_rows, const Rows& v_rows) {
    kernel.pack_transposed(k_rows, staging.data(), k.data());
    kernel.pack_transposed(v_rows, staging.data(), v.data());
  }

  /// P and dS of the columns [first, first + columns) for the rows of a tile, into scores and slopes. The rows of q
  /// (times softmax_scale * log2 e) and dout are those of `operand_ids`, those of the terms are tile.ids.
  void differentiate(const Kernels& kernel, const Dims& dims, const ScoreTile& tile, std::int64_t first, const float* q,
                     const float* dout, const std::int32_t* operand_ids, const RowTermsView& terms) const {
    kernel.multiply({.m = tile.rows,
                     .n = tile.columns,
                     .k = dims.dim,
                     .a = q,
                     .a_row = padded(dims.dim),
                     .a_ids = operand_ids,
                     .b = k.data() + first * dims.dim,
                     .b_panel_stride = dims.dim * kPanel,
                     .c = scores.data(),
                     .c_row = kKeyTile});
    kernel.multiply({.m = tile.rows,
                     .n = tile.columns,
                     .k = dims.value_dim,
                     .a = dout,
                     .a_row = padded(dims.value_dim),
                     .a_ids = operand_ids,
                     .b = v.data() + first * dims.value_dim,
                     .b_panel_stride = dims.value_dim * kPanel,
                     .c = slopes.data(),
                     .c_row = kKeyTile});
    kernel.softmax_backward(tile, slopes.data(), terms);
  }

  Scratch<float> k, v, staging, scores, slopes;
};

/// Whether the passes take products of bfloat16 pairs.
inline bool uses_pairs(const AttendBackwardArgs& args) {
  return args.q.dtype == DType::kBFloat16 && pair_product_kernels() != nullptr;
}

/// The two passes. dq: a task per chunk of query rows. dk, dv: a task per tile of keys, so that no two tasks add to the
/// same number and none needs atomics.
void query_gradients(Context& context, const AttendBackwardArgs& args, const Dims& dims, const Sequences& sequences,
                     const RowTerms& terms);
void key_gradients(Context& context, const AttendBackwardArgs& args, const Dims& dims, const Sequences& sequences,
                   const RowTerms& terms);

}  // namespace moba::cpu
