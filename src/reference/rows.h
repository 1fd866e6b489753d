// Small helpers of the reference: rows of strided tensors, and products in double precision.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "moba/tensor.h"

namespace moba::reference {

/// The first element of tensor[row, head, :].
template <class T, class View>
auto* row_of(const View& tensor, std::int64_t row, std::int64_t head) {
  return tensor.template as<T>() + row * tensor.stride[0] + head * tensor.stride[1];
}

template <class T>
void load(double* to, const T* from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = to_double(from[i]);
}

template <class T>
void store(T* to, const double* from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = round_to<T>(from[i]);
}

/// Sum of a[i] * b[i] in double: eight running sums, so that a compiler may use vector registers.
template <class T>
double dot(const double* a, const T* b, std::int64_t count) {
  constexpr std::int64_t kLanes = 8;
  double sum[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) sum[lane] += a[i + lane] * to_double(b[i + lane]);
  }
  for (; i < count; ++i) sum[0] += a[i] * to_double(b[i]);
  return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

/// to[i] += factor * from[i]
template <class T>
void add_scaled(double* to, double factor, const T* from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] += factor * to_double(from[i]);
}

/// An lse or a gradient of one, float32 or float64, at [head, row].
inline double load_lse(const ConstTensorView& lse, std::int64_t head, std::int64_t row) {
  const std::int64_t at = head * lse.stride[0] + row * lse.stride[1];
  return lse.dtype == DType::kFloat64 ? lse.as<double>()[at] : static_cast<double>(lse.as<float>()[at]);
}

inline void store_lse(const TensorView& lse, std::int64_t head, std::int64_t row, double value) {
  const std::int64_t at = head * lse.stride[0] + row * lse.stride[1];
  if (lse.dtype == DType::kFloat64) {
    lse.as<double>()[at] = value;
  } else {
    lse.as<float>()[at] = static_cast<float>(value);
  }
}

}  // namespace moba::reference
