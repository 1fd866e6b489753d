// dk and dv of one tile of keys while query rows are added to them, by products of float32 numbers. key_sums_pairs.h
// has the same by products of bfloat16 pairs.
#pragma once

#include "cpu/backward_inputs.h"
#include "cpu/tiles.h"

namespace moba::cpu {

class KeySums {
 public:
  static constexpr std::int64_t kRowTile = cpu::kRowTile;
  static std::int64_t bytes(const Dims& dims);
  KeySums(Context& context, const AttendBackwardArgs& args, const Dims& dims, const RowTerms& terms);

  /// Begins with `count` <= kKeyTile packed keys from `first` on.
  void begin(std::int64_t first, std::int64_t count, std::int64_t kv_head);
  /// Says that a row will be added some rows later.
  void expect(std::int64_t /*row*/, std::int64_t /*head*/) const {}
  /// Adds rows of a query head: ids are packed rows, of which none has an lse of -inf.
  void add(RowTile& rows, std::int64_t head);

  const float* dk() const { return dk_.data(); }                // [keys, padded(D)]; to be multiplied by dk_factor()
  const float* dv() const { return dv_.data(); }                // [keys, padded(Dv)]
  float dk_factor() const { return static_cast<float>(kLn2); }  // the rows of q carried softmax_scale * log2 e

 private:
  void add_product(const RowTile& rows, std::int64_t first, const float* weights, const float* right, bool is_finite,
                   std::int64_t width, float* sums) const;

  const AttendBackwardArgs& args_;
  const Dims& dims_;
  const RowTerms& terms_;
  const Kernels& kernels_;
  Scratch<float> dk_, dv_, q_, dout_, q_panels_, dout_panels_;
  KeyOperands operands_;
};

}  // namespace moba::cpu
