// dk and dv of one tile of keys while query rows are added to them, by products of bfloat16 pairs. See key_sums.h.
#pragma once

#include "cpu/pair_slopes.h"
#include "cpu/tiles.h"

namespace moba::cpu {

class PairKeySums {
 public:
  static constexpr std::int64_t kRowTile = kPairRows;
  static std::int64_t bytes(const Dims& dims);
  PairKeySums(Context& context, const AttendBackwardArgs& args, const Dims& dims, const RowTerms& terms);

  void begin(std::int64_t first, std::int64_t count, std::int64_t kv_head);
  void expect(std::int64_t row, std::int64_t head) const;
  void add(RowTile& rows, std::int64_t head);

  const float* dk() const { return dk_.data(); }
  const float* dv() const { return dv_.data(); }
  float dk_factor() const { return static_cast<float>(args_.softmax_scale); }

 private:
  void add_product(const RowTile& rows, const PairTile& tile, std::int64_t key, const Pair* weights,
                   const PairSource& right, const Pair* right_panels, bool is_finite, float* sums) const;

  const AttendBackwardArgs& args_;
  const Dims& dims_;
  const RowTerms& terms_;
  const PairKernels& kernel_;
  Scratch<float> dk_, dv_;
  Scratch<Pair> q_panels_, dout_panels_, p_, slopes_;
  PairSlopes operands_;
};

}  // namespace moba::cpu
