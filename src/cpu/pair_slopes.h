// What both passes of the backward do with bfloat16 pairs: scores and dP of 64 query rows against 64 keys, and from
// them P and dS.
#pragma once

#include "cpu/backward_inputs.h"
#include "cpu/pairs.h"

namespace moba::cpu {

class PairSlopes {
 public:
  /// Room for `keys` keys.
  PairSlopes(Context& context, const AttendBackwardArgs& args, const Dims& dims, std::int64_t keys)
      : args_(args),
        dims_(dims),
        kernel_(*pair_kernels()),
        ready_(kernel_),
        k_row_(pair_row(dims.dim)),
        v_row_(pair_row(dims.value_dim)),
        k_(context, keys * k_row_, "a tile of keys"),
        v_(context, keys * v_row_, "a tile of values"),
        q_lanes_(context, k_row_ * kPairRows, "query rows"),
        dout_lanes_(context, v_row_ * kPairRows, "gradients of output rows"),
        scores_(context, kPairKeys * kPairRows, "a tile of scores"),
        dp_(context, kPairKeys * kPairRows, "a tile of gradients of weights") {}

  static std::int64_t bytes(const Dims& dims, std::int64_t keys) {
    return 4 * (keys + kPairRows) * (pair_row(dims.dim) + pair_row(dims.value_dim)) + 8 * kPairKeys * kPairRows;
  }

  void load_keys(const Rows& k, const Rows& v) {
    kernel_.copy_rows(pair_source(k), k_.data(), k_row_);
    kernel_.copy_rows(pair_source(v), v_.data(), v_row_);
  }

  /// At most 64 rows of q and dout, and their terms, by id. Lanes behind them get no P and no dS.
  void load_rows(const PairSource& q, const PairSource& dout, const std::int32_t* term_ids, const RowTermsView& terms) {
    kernel_.pack_lanes(q, q_lanes_.data());
    kernel_.pack_lanes(dout, dout_lanes_.data());
    lanes_ = q.rows;
    for (std::int64_t i = 0; i < kPairRows; ++i) {
      lse_[i] = i < lanes_ ? terms.lse[term_ids[i]] : kNegativeInfinity;
      delta_[i] = i < lanes_ ? terms.delta[term_ids[i]] : 0.0f;
      dlse_[i] = i < lanes_ ? terms.dlse[term_ids[i]] : 0.0f;
    }
  }

  /// The keys [key, key + count) of the tile against the rows loaded, of which row i sees the columns [begin[i],
  /// end[i]) of the tile; writes as PairKernels::softmax_backward does. The result holds where rows do not see all
  /// keys.
  PairTile differentiate(std::int64_t key, std::int64_t count, const std::int32_t* begin, const std::int32_t* end,
                         Pair* slopes, Pair* p_rows, Pair* slope_rows) {
    PairTile tile{.scores = scores_.data(),
                  .keys = count,
                  .lanes = lanes_,
                  .scale = static_cast<float>(args_.softmax_scale * kLog2E)};
    for (std::int64_t i = 0; i < lanes_; ++i) {
      begin_[i] = begin[i] - static_cast<std::int32_t>(key);
      end_[i] = end[i] - static_cast<std::int32_t>(key);
      if (begin_[i] > 0 || end_[i] < count) {
        tile.begin = begin_;
        tile.end = end_;
      }
    }
    kernel_.multiply({.m = count,
                      .n = lanes_,
                      .pairs = pairs_of(dims_.dim),
                      .a = k_.data() + key * k_row_,
                      .a_row = k_row_,
                      .b = q_lanes_.data(),
                      .c = scores_.data(),
                      .c_row = kPairRows});
    kernel_.multiply({.m = count,
                      .n = lanes_,
                      .pairs = pairs_of(dims_.value_dim),
                      .a = v_.data() + key * v_row_,
                      .a_row = v_row_,
                      .b = dout_lanes_.data(),
                      .c = dp_.data(),
                      .c_row = kPairRows});
    kernel_.softmax_backward(tile, dp_.data(), {lse_, delta_, dlse_}, slopes, p_rows, slope_rows);
    return tile;
  }

 private:
  const AttendBackwardArgs& args_;
  const Dims& dims_;
  const PairKernels& kernel_;
  ReadyForProducts ready_;
  std::int64_t k_row_, v_row_, lanes_ = 0;
  float lse_[kPairRows] = {}, delta_[kPairRows] = {}, dlse_[kPairRows] = {};
  std::int32_t begin_[kPairRows] = {}, end_[kPairRows] = {};
  Scratch<Pair> k_, v_, q_lanes_, dout_lanes_;
  Scratch<float> scores_, dp_;
};

}  // namespace moba::cpu
