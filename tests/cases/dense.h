// Attention as one masked softmax over a rows x keys table, written from the definition and from nothing else: the
// judge of the backends.
#pragma once

#include "cases/problem.h"

namespace moba::cases {

/// Whether a packed row of a query head sees a packed key: straight from the definition of Selection.
class Mask {
 public:
  Mask(const Problem& problem, const Selection& selection);
  bool sees(std::int64_t row, std::int64_t head, std::int64_t key) const {
    return table_[static_cast<std::size_t>((row * heads_ + head) * keys_ + key)] != 0;
  }

 private:
  std::int64_t heads_, keys_;
  std::vector<char> table_;
};

/// out, lse and gradients in double precision, none of them rounded (float64 tensors).
Results dense_exact(const Problem& problem, const Mask& mask);

/// What a careful dense implementation in the precision of the inputs gives: products summed in float32, probabilities
/// and their gradients rounded to the inputs' dtype before the second product, results rounded to it. As everywhere,
/// the backward pass gets the probabilities from the float32 lse of the forward.
Results dense_same_precision(const Problem& problem, const Mask& mask);

}  // namespace moba::cases
