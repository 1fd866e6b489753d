// The mean key of a block, the same bits however the tokens arrive: their sum in token order, divided by their number,
// rounded once. Shared by `pool` of the reference and by the key/value cache.
#pragma once

#include <cstdint>
#include <type_traits>

#include "dtype.h"

namespace moba {

/// float32, or float64 beside float64.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// sum[d] += key[d]
template <class T>
void add_key(Accumulator<T>* sum, const T* key, std::int64_t dim) {
  for (std::int64_t d = 0; d < dim; ++d) {
    if constexpr (std::is_same_v<T, double>) {
      sum[d] += key[d];
    } else {
      sum[d] += to_float(key[d]);
    }
  }
}

/// mean[d] = sum[d] / count, a division in the accumulator's type, rounded once to T: the dtype of the keys or the
/// accumulator's.
template <class T>
void write_mean(T* mean, const Accumulator<T>* sum, std::int64_t count, std::int64_t dim) {
  for (std::int64_t d = 0; d < dim; ++d) {
    mean[d] = round_to<T>(static_cast<double>(sum[d] / static_cast<Accumulator<T>>(count)));
  }
}

}  // namespace moba
