// float32, bfloat16 and float16 rows to float32 and back.
// Included once for each SIMD level.

#if defined(MOBA_CPU_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOBA_CPU_CONVERT_INL_H_
#undef MOBA_CPU_CONVERT_INL_H_
#else
#define MOBA_CPU_CONVERT_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moba::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using Floats = hn::Vec<FloatTag>;
inline constexpr std::size_t kMaxLanes = hn::MaxLanes(FloatTag());

// One vector of elements as floats.
HWY_INLINE Floats load(FloatTag d, const float* src) {
  return hn::LoadU(d, src);
}

HWY_INLINE Floats load(FloatTag d, const BFloat16* src) {
  const hn::RebindToUnsigned<FloatTag> du;
  const hn::Rebind<std::uint16_t, FloatTag> du16;
  return hn::BitCast(
      d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(du16, reinterpret_cast<const std::uint16_t*>(src)))));
}

// Highway's own promotion does not keep infinity and NaN at the levels without F16C.
HWY_INLINE Floats load(FloatTag d, const Float16* src) {
  const hn::RebindToUnsigned<FloatTag> du;
  const hn::RebindToSigned<FloatTag> di;
  const hn::Rebind<std::uint16_t, FloatTag> du16;
  const auto bits = hn::PromoteTo(du, hn::LoadU(du16, reinterpret_cast<const std::uint16_t*>(src)));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7fffu));
  const auto sign = hn::ShiftLeft<16>(hn::Xor(bits, magnitude));
  const auto shifted = hn::ShiftLeft<13>(magnitude);
  // The exponent is 112 too small; the product also normalises subnormal numbers.
  const auto finite = hn::BitCast(du, hn::Mul(hn::BitCast(d, shifted), hn::Set(d, 0x1p112f)));
  const auto special = hn::Or(shifted, hn::Set(du, 0x7f800000u));
  const auto is_finite = hn::Gt(hn::Set(di, 0x7c00), hn::BitCast(di, magnitude));
  const auto value = hn::IfThenElse(hn::RebindMask(du, is_finite), finite, special);
  return hn::BitCast(d, hn::Or(value, sign));
}

// The first `count` elements (fewer than a vector), zero behind them.
template <class T>
HWY_INLINE Floats load_first(FloatTag d, const T* src, std::size_t count) {
  HWY_ALIGN T buffer[kMaxLanes] = {};
  for (std::size_t i = 0; i < count; ++i) buffer[i] = src[i];
  return load(d, buffer);
}

// One vector, rounded to nearest even.
HWY_INLINE void store(FloatTag d, Floats value, float* dst) {
  hn::StoreU(value, d, dst);
}

HWY_INLINE void store(FloatTag /*d*/, Floats value, BFloat16* dst) {
  const hn::RebindToUnsigned<FloatTag> du;
  const hn::RebindToSigned<FloatTag> di;
  const hn::Rebind<std::uint16_t, FloatTag> du16;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffu)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000u));
  const auto result = hn::IfThenElse(hn::RebindMask(du, hn::Ne(value, value)), quiet, rounded);
  const auto high = hn::BitCast(di, hn::ShiftRight<16>(result));
  hn::StoreU(hn::DemoteTo(du16, high), du16, reinterpret_cast<std::uint16_t*>(dst));
}

// The vector form of round_to_float16 in dtype.h.
HWY_INLINE void store(FloatTag d, Floats value, Float16* dst) {
  const hn::RebindToUnsigned<FloatTag> du;
  const hn::RebindToSigned<FloatTag> di;
  const hn::Rebind<std::uint16_t, FloatTag> du16;
  const auto bits = hn::BitCast(du, value);
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7fffffffu));
  const auto sign = hn::ShiftRight<16>(hn::Xor(bits, magnitude));
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1u));
  const auto normal =
      hn::Sub(hn::ShiftRight<13>(hn::Add(magnitude, hn::Add(odd, hn::Set(du, 0xfffu)))), hn::Set(du, 112u << 10));
  const auto half = hn::Set(d, 0.5f);
  const auto small = hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(d, magnitude), half)), hn::BitCast(du, half));
  const auto above = [&](std::int32_t limit) {
    return hn::RebindMask(du, hn::Gt(hn::BitCast(di, magnitude), hn::Set(di, limit)));
  };
  auto result = hn::IfThenElse(above(0x387fffff), normal, small);
  result = hn::IfThenElse(above(0x477fefff), hn::Set(du, 0x7c00u), result);
  result = hn::IfThenElse(above(0x7f800000), hn::Set(du, 0x7e00u), result);
  hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di, hn::Or(result, sign))), du16, reinterpret_cast<std::uint16_t*>(dst));
}

template <class T>
HWY_INLINE void store_first(FloatTag d, Floats value, std::size_t count, T* dst) {
  HWY_ALIGN T buffer[kMaxLanes];
  store(d, value, buffer);
  for (std::size_t i = 0; i < count; ++i) dst[i] = buffer[i];
}

// Calls body with the typed pointer of the data: the three input types of this backend, checked by the caller.
template <class Pointer, class Body>
HWY_INLINE void with_elements(DType dtype, Pointer data, Body&& body) {
  constexpr bool kReadOnly = std::is_same_v<Pointer, const void*>;
  if (dtype == DType::kBFloat16) {
    body(static_cast<std::conditional_t<kReadOnly, const BFloat16*, BFloat16*>>(data));
  } else if (dtype == DType::kFloat16) {
    body(static_cast<std::conditional_t<kReadOnly, const Float16*, Float16*>>(data));
  } else {
    body(static_cast<std::conditional_t<kReadOnly, const float*, float*>>(data));
  }
}

template <class T>
HWY_INLINE void load_row(const T* src, std::int64_t columns, float scale, float* dst) {
  const FloatTag d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const Floats factor = hn::Set(d, scale);
  std::int64_t c = 0;
  for (; c + lanes <= columns; c += lanes) hn::StoreU(hn::Mul(load(d, src + c), factor), d, dst + c);
  if (c < columns) {
    const std::size_t rest = static_cast<std::size_t>(columns - c);
    hn::StoreU(hn::Mul(load_first(d, src + c, rest), factor), d, dst + c);
    c += lanes;
  }
  for (; c < padded(columns); c += lanes) hn::StoreU(hn::Zero(d), d, dst + c);
}

void load_rows(const Rows& src, float scale, float* dst, std::int64_t dst_row) {
  with_elements(src.dtype, src.data, [&](const auto* data) {
    for (std::int64_t r = 0; r < src.rows; ++r) load_row(data + r * src.stride, src.columns, scale, dst + r * dst_row);
  });
}

void store_row(const float* src, float factor, std::int64_t columns, DType dtype, void* dst) {
  const FloatTag d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const Floats scale = hn::Set(d, factor);
  with_elements(dtype, dst, [&](auto* out) {
    std::int64_t c = 0;
    for (; c + lanes <= columns; c += lanes) store(d, hn::Mul(hn::LoadU(d, src + c), scale), out + c);
    if (c < columns) {
      const std::size_t rest = static_cast<std::size_t>(columns - c);
      store_first(d, hn::Mul(load_first(d, src + c, rest), scale), rest, out + c);
    }
  });
}

bool pack_rows(const Rows& src, float* dst) {
  const FloatTag d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  // x * 0 is 0 for every finite x and NaN for the rest, and a sum with a NaN stays one.
  Floats spoiled = hn::Zero(d);
  with_elements(src.dtype, src.data, [&](const auto* data) {
    for (std::int64_t r = 0; r < src.rows; ++r) {
      const auto* row = data + r * src.stride;
      for (std::int64_t c = 0; c < padded(src.columns); c += lanes) {
        Floats value = hn::Zero(d);
        if (c + lanes <= src.columns) {
          value = load(d, row + c);
        } else if (c < src.columns) {
          value = load_first(d, row + c, static_cast<std::size_t>(src.columns - c));
        }
        spoiled = hn::MulAdd(value, hn::Zero(d), spoiled);
        hn::StoreU(value, d, dst + (c / kPanel * src.rows + r) * kPanel + c % kPanel);
      }
    }
  });
  return hn::AllTrue(d, hn::Eq(spoiled, spoiled));
}

// Four rows of floats become four columns of a panel.
HWY_INLINE void transpose_four(const float* rows, std::int64_t row_stride, std::int64_t columns, float* panel) {
#if HWY_TARGET == HWY_SCALAR
  for (std::int64_t c = 0; c < columns; ++c) {
    for (std::int64_t r = 0; r < 4; ++r) panel[c * kPanel + r] = rows[r * row_stride + c];
  }
#else
  const hn::FixedTag<float, 4> d4;
  const hn::FixedTag<double, 2> d2;
  for (std::int64_t c = 0; c < columns; c += 4) {  // rows are padded, so whole groups of four can be read
    const auto r0 = hn::LoadU(d4, rows + c);
    const auto r1 = hn::LoadU(d4, rows + row_stride + c);
    const auto r2 = hn::LoadU(d4, rows + 2 * row_stride + c);
    const auto r3 = hn::LoadU(d4, rows + 3 * row_stride + c);
    const auto low01 = hn::BitCast(d2, hn::InterleaveLower(d4, r0, r1));
    const auto low23 = hn::BitCast(d2, hn::InterleaveLower(d4, r2, r3));
    const auto high01 = hn::BitCast(d2, hn::InterleaveUpper(d4, r0, r1));
    const auto high23 = hn::BitCast(d2, hn::InterleaveUpper(d4, r2, r3));
    float* out = panel + c * kPanel;
    hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, low01, low23)), d4, out);
    if (c + 1 < columns) hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, low01, low23)), d4, out + kPanel);
    if (c + 2 < columns) hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, high01, high23)), d4, out + 2 * kPanel);
    if (c + 3 < columns) hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, high01, high23)), d4, out + 3 * kPanel);
  }
#endif
}

void pack_transposed(const Rows& src, float* staging, float* dst) {
  const std::int64_t row_stride = padded(src.columns);
  with_elements(src.dtype, src.data, [&](const auto* data) {
    for (std::int64_t r = 0; r < padded(src.rows); r += 4) {
      for (std::int64_t i = 0; i < 4; ++i) {
        float* row = staging + i * row_stride;
        if (r + i < src.rows) {
          load_row(data + (r + i) * src.stride, src.columns, 1.0f, row);
        } else {
          for (std::int64_t c = 0; c < row_stride; ++c) row[c] = 0.0f;
        }
      }
      transpose_four(staging, row_stride, src.columns, dst + r / kPanel * src.columns * kPanel + r % kPanel);
    }
  });
}

void add_rows(const Rows& src, float* sum) {
  const FloatTag d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  with_elements(src.dtype, src.data, [&](const auto* data) {
    // Four sums at a time, since one waits for the addition before it.
    std::int64_t c = 0;
    for (; c + 4 * lanes <= src.columns; c += 4 * lanes) {
      Floats total0 = hn::LoadU(d, sum + c), total1 = hn::LoadU(d, sum + c + lanes);
      Floats total2 = hn::LoadU(d, sum + c + 2 * lanes), total3 = hn::LoadU(d, sum + c + 3 * lanes);
      for (std::int64_t r = 0; r < src.rows; ++r) {
        const auto* row = data + r * src.stride + c;
        total0 = hn::Add(total0, load(d, row));
        total1 = hn::Add(total1, load(d, row + lanes));
        total2 = hn::Add(total2, load(d, row + 2 * lanes));
        total3 = hn::Add(total3, load(d, row + 3 * lanes));
      }
      hn::StoreU(total0, d, sum + c);
      hn::StoreU(total1, d, sum + c + lanes);
      hn::StoreU(total2, d, sum + c + 2 * lanes);
      hn::StoreU(total3, d, sum + c + 3 * lanes);
    }
    for (; c < src.columns; c += lanes) {
      const bool whole = c + lanes <= src.columns;
      const std::size_t count = static_cast<std::size_t>(whole ? lanes : src.columns - c);
      Floats total = whole ? hn::LoadU(d, sum + c) : load_first(d, sum + c, count);
      for (std::int64_t r = 0; r < src.rows; ++r) {
        const auto* row = data + r * src.stride + c;
        total = hn::Add(total, whole ? load(d, row) : load_first(d, row, count));
      }
      if (whole) {
        hn::StoreU(total, d, sum + c);
      } else {
        store_first(d, total, count, sum + c);
      }
    }
  });
}

}  // namespace moba::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
