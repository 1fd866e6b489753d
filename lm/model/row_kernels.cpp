#include "lm/model/row_kernels.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// One source for every vector width; the widest that the processor has is chosen when the program is loaded.
#if defined(__x86_64__)
#define MOBA_WIDEST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MOBA_WIDEST
#endif

namespace moba::lm {
namespace {

using torch::Tensor;

constexpr std::int64_t kLanes = 16;
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Words = std::uint32_t __attribute__((vector_size(4 * kLanes)));
using Halves = std::uint16_t __attribute__((vector_size(2 * kLanes)));
using Bf16 = std::uint16_t;  // the bits of a bfloat16

// Vectors are passed by reference: by value they would have another ABI in each clone.

/// Copies the first min(count, 16) of 16 elements; whole vectors without a call.
template <class T>
[[gnu::always_inline]] inline void copy_lanes(void* to, const void* from, std::int64_t count) {
  if (count >= kLanes) {
    std::memcpy(to, from, sizeof(T) * kLanes);
  } else {
    std::memcpy(to, from, sizeof(T) * static_cast<std::size_t>(count));
  }
}

/// The first min(count, 16) elements at p; zeros behind them.
[[gnu::always_inline]] inline void load(const float* p, std::int64_t count, Floats& x) {
  x = Floats{};
  copy_lanes<float>(&x, p, count);
}

[[gnu::always_inline]] inline void load(const Bf16* p, std::int64_t count, Floats& x) {
  Halves bits{};
  copy_lanes<Bf16>(&bits, p, count);
  x = reinterpret_cast<Floats>(__builtin_convertvector(bits, Words) << 16u);
}

[[gnu::always_inline]] inline void store(float* p, std::int64_t count, const Floats& x) {
  copy_lanes<float>(p, &x, count);
}

// To the nearest, ties to even; a NaN would overflow into an infinity or a zero and is set apart.
[[gnu::always_inline]] inline void store(Bf16* p, std::int64_t count, const Floats& x) {
  const Words bits = reinterpret_cast<Words>(x);
  const Words nan = Words{} + 0x7FC00000u;
  const Words rounded = x != x ? nan : bits + (0x7FFFu + (bits >> 16u & 1u));
  const Halves result = __builtin_convertvector(rounded >> 16u, Halves);
  copy_lanes<Bf16>(p, &result, count);
}

/// 2^power, relative error below 2e-7 (the series of exp(f log 2), |f| <= 1/2); inf from 127.5 on, 0 below -126.5.
[[gnu::always_inline]] inline void exp2(const Floats& power, Floats& result) {
  const Floats most = Floats{} + 128.0F, least = Floats{} - 127.0F;
  const Floats x = power > most ? most : power < least ? least : power;
  // Adding 1.5 * 2^23 leaves the nearest integer in the last bits.
  const Floats shifted = x + 12582912.0F;
  const Floats f = x - (shifted - 12582912.0F);
  Floats series = Floats{} + 1.5403530e-4F;
  for (const float coefficient : {1.3333558e-3F, 9.6181291e-3F, 5.5504109e-2F, 2.4022651e-1F, 6.9314718e-1F, 1.0F}) {
    series = series * f + coefficient;
  }
  const Words exponent = reinterpret_cast<Words>(shifted) - 0x4B400000u + 127u;
  result = series * reinterpret_cast<Floats>(exponent << 23u);
}

[[gnu::always_inline]] inline float sum_of(const Floats& x) {
  const auto eight = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto four =
      __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

template <class T>
[[gnu::always_inline]] inline void multiply_row(const T* x, const T* weight, T* out, std::int64_t outputs,
                                                std::int64_t n) {
  for (std::int64_t m = 0; m < outputs; ++m, weight += n) {
    Floats sum{}, a, b;
    for (std::int64_t i = 0; i < n; i += kLanes) {
      load(x + i, n - i, a);
      load(weight + i, n - i, b);
      sum += a * b;
    }
    store(out + m, 1, Floats{} + sum_of(sum));
  }
}

template <class T>
[[gnu::always_inline]] inline void norm_rows(const T* x, const T* weight, T* out, std::int64_t rows, std::int64_t n,
                                             float epsilon) {
  for (std::int64_t row = 0; row < rows; ++row, x += n, out += n) {
    Floats squares{}, value, factor;
    for (std::int64_t i = 0; i < n; i += kLanes) {
      load(x + i, n - i, value);
      squares += value * value;
    }
    const float scale = 1.0F / std::sqrt(sum_of(squares) / static_cast<float>(n) + epsilon);
    for (std::int64_t i = 0; i < n; i += kLanes) {
      load(x + i, n - i, value);
      load(weight + i, n - i, factor);
      store(out + i, n - i, value * scale * factor);
    }
  }
}

template <class T>
[[gnu::always_inline]] inline void gate_rows(const T* gate, const T* up, T* out, std::int64_t count) {
  constexpr float kLog2E = 1.44269504F;
  for (std::int64_t i = 0; i < count; i += kLanes) {
    Floats g, u, power;
    load(gate + i, count - i, g);
    load(up + i, count - i, u);
    exp2(g * -kLog2E, power);
    store(out + i, count - i, g / (power + 1.0F) * u);
  }
}

/// Heads of one row: a token's heads lie `*_stride` elements apart.
struct Heads {
  std::int64_t count, half;
  std::int64_t source_stride, target_stride;
};

template <class T>
[[gnu::always_inline]] inline void turn_row(const T* source, T* target, const float* cos, const float* sin,
                                            const Heads& heads, float sign) {
  for (std::int64_t head = 0; head < heads.count; ++head) {
    for (std::int64_t i = 0; i < heads.half; i += kLanes) {
      const std::int64_t left = heads.half - i;
      Floats low, high, c, s;
      load(source + i, left, low);
      load(source + heads.half + i, left, high);
      load(cos + i, left, c);
      load(sin + i, left, s);
      s *= sign;
      store(target + i, left, low * c - high * s);
      store(target + heads.half + i, left, high * c + low * s);
    }
    source += heads.source_stride;
    target += heads.target_stride;
  }
}

// Clones are functions of their own, not templates: Clang makes none of these.
MOBA_WIDEST void multiply(const Bf16* x, const Bf16* weight, Bf16* out, std::int64_t outputs, std::int64_t n) {
  multiply_row(x, weight, out, outputs, n);
}
MOBA_WIDEST void multiply(const float* x, const float* weight, float* out, std::int64_t outputs, std::int64_t n) {
  multiply_row(x, weight, out, outputs, n);
}
MOBA_WIDEST void norm(const Bf16* x, const Bf16* weight, Bf16* out, std::int64_t rows, std::int64_t n, float epsilon) {
  norm_rows(x, weight, out, rows, n, epsilon);
}
MOBA_WIDEST void norm(const float* x, const float* weight, float* out, std::int64_t rows, std::int64_t n,
                      float epsilon) {
  norm_rows(x, weight, out, rows, n, epsilon);
}
MOBA_WIDEST void gated(const Bf16* gate, const Bf16* up, Bf16* out, std::int64_t count) {
  gate_rows(gate, up, out, count);
}
MOBA_WIDEST void gated(const float* gate, const float* up, float* out, std::int64_t count) {
  gate_rows(gate, up, out, count);
}
MOBA_WIDEST void turn(const Bf16* source, Bf16* target, const float* cos, const float* sin, const Heads& heads,
                      float sign) {
  turn_row(source, target, cos, sin, heads, sign);
}
MOBA_WIDEST void turn(const float* source, float* target, const float* cos, const float* sin, const Heads& heads,
                      float sign) {
  turn_row(source, target, cos, sin, heads, sign);
}

/// body(first element of the kernels' type), for the dtype of x.
template <class Body>
void with_element(const Tensor& x, const Body& body) {
  if (x.scalar_type() == torch::kBFloat16) {
    body(Bf16{});
  } else {
    body(float{});
  }
}

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

/// body(begin, end) over all rows, many enough at a time that a thread's start is worth it.
template <class Body>
void over_rows(std::int64_t rows, std::int64_t row_elements, const Body& body) {
  constexpr std::int64_t kElements = 32768;
  at::parallel_for(0, rows, std::max<std::int64_t>(1, kElements / std::max<std::int64_t>(row_elements, 1)), body);
}

}  // namespace

bool has_row_kernels(const Tensor& x) {
  return x.is_cpu() && (x.scalar_type() == torch::kBFloat16 || x.scalar_type() == torch::kFloat32);
}

Tensor project_few_rows(const Tensor& x, const std::vector<Tensor>& weights) {
  const std::int64_t rows = x.size(0), n = x.size(1);
  std::int64_t width = 0;
  for (const Tensor& weight : weights) width += weight.size(0);
  const Tensor out = at::empty({rows, width}, x.options());
  with_element(x, [&]<class T>(T) {
    // One parallel region for all weights; each thread takes a stretch of the outputs.
    over_rows(width, n, [&](std::int64_t begin, std::int64_t end) {
      std::int64_t first = 0;  // output of the weight's first row
      for (const Tensor& weight : weights) {
        const std::int64_t from = std::max(begin, first), to = std::min(end, first + weight.size(0));
        for (std::int64_t row = 0; row < rows && from < to; ++row) {
          multiply(data<T>(x) + row * n, data<T>(weight) + (from - first) * n,
                   mutable_data<T>(out) + row * width + from, to - from, n);
        }
        first += weight.size(0);
      }
    });
  });
  return out;
}

Tensor rms_norm_rows(const Tensor& x, const Tensor& weight, double epsilon) {
  const std::int64_t n = x.size(-1), rows = n == 0 ? 0 : x.numel() / n;
  const Tensor out = at::empty(x.sizes(), x.options());
  with_element(x, [&]<class T>(T) {
    over_rows(rows, n, [&](std::int64_t begin, std::int64_t end) {
      norm(data<T>(x) + begin * n, data<T>(weight), mutable_data<T>(out) + begin * n, end - begin, n,
           static_cast<float>(epsilon));
    });
  });
  return out;
}

Tensor swiglu_rows(const Tensor& gate, const Tensor& up) {
  const Tensor out = at::empty(gate.sizes(), gate.options());
  with_element(gate, [&]<class T>(T) {
    over_rows(gate.size(0), gate.size(1), [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t first = begin * gate.size(1);
      gated(data<T>(gate) + first, data<T>(up) + first, mutable_data<T>(out) + first, (end - begin) * gate.size(1));
    });
  });
  return out;
}

void rotate_rows(Tensor& target, const Tensor& source, const Tensor& cos, const Tensor& sin, float sign) {
  const Heads heads{source.size(1), source.size(2) / 2, source.stride(1), target.stride(1)};
  with_element(source, [&]<class T>(T) {
    over_rows(source.size(0), source.size(1) * source.size(2), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        turn(data<T>(source) + row * source.stride(0), mutable_data<T>(target) + row * target.stride(0),
             data<float>(cos) + row * heads.half, data<float>(sin) + row * heads.half, heads, sign);
      }
    });
  });
}

}  // namespace moba::lm
