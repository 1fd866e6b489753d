// Arguments of any kind for the public C++ API, drawn from the fuzzer's bytes. Most are right, and a few are bent, so
// that every check is reached.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <deque>
#include <limits>
#include <memory>

#include "fuzz/fuzz.h"
#include "moba/moba.h"

namespace moba::fuzz {

inline constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();

class Arguments {
 public:
  Arguments(const std::uint8_t* data, std::size_t size) : bytes_(data, size) {}

  bool bend() { return bytes_.ConsumeIntegralInRange<int>(0, 40) == 40; }
  std::int64_t number(std::int64_t low, std::int64_t high) { return bytes_.ConsumeIntegralInRange(low, high); }
  std::int64_t any_number() {
    constexpr std::int64_t kEnds[] = {
        0, 1, -1, kLargest, -kLargest - 1, kLargest / 2, 1 << 20, 1LL << 31, 1LL << 32, (1LL << 62) + 1, 2, 3};
    return bytes_.ConsumeBool() ? kEnds[number(0, 11)] : bytes_.ConsumeIntegral<std::int64_t>();
  }
  /// `usual`, or now and then anything.
  std::int64_t mostly(std::int64_t usual) { return bend() ? any_number() : usual; }
  DType mostly(DType usual) { return bend() ? static_cast<DType>(number(0, 5)) : usual; }
  double scale() {
    if (!bend()) return 0.0;
    constexpr double kEnds[] = {-1.0, 1e300, 1e-300, std::numeric_limits<double>::infinity()};
    return bytes_.ConsumeBool() ? kEnds[number(0, 3)] : bytes_.ConsumeFloatingPoint<double>();
  }

  /// A view of memory that holds it, with gaps and reversed axes now and then; or, where it is too large for that, of
  /// none at all, so that the call must refuse it. Its first bytes are the fuzzer's.
  TensorView tensor(DType dtype, std::initializer_list<std::int64_t> shape) {
    TensorView view(nullptr, mostly(dtype), shape);
    if (bend()) return {};
    if (bend()) view.rank = static_cast<int>(number(0, kMaxRank));
    for (int axis = 0; axis < view.rank; ++axis) {
      view.shape[static_cast<std::size_t>(axis)] = mostly(view.shape[static_cast<std::size_t>(axis)]);
    }
    if (bend()) view.device = {static_cast<DeviceKind>(number(0, 1)), static_cast<int>(number(-1, 1))};
    if (bend()) {
      const std::size_t axis = static_cast<std::size_t>(number(0, kMaxRank - 1));
      view.stride[axis] = bytes_.ConsumeBool() ? any_number() : number(-4, 40);
    }
    place(view);
    return view;
  }

  AttentionOptions options() {
    AttentionOptions options;
    options.kind = static_cast<Kind>(bend() ? number(0, 255) : number(0, 2));
    options.block_size = mostly(number(1, 9));
    options.top_k = mostly(number(1, 5));
    options.compat_topk1_full = bytes_.ConsumeBool();
    options.force_previous = bytes_.ConsumeBool();
    options.sink_blocks = mostly(number(0, 2));
    options.share = static_cast<Share>(bend() ? number(0, 255) : number(0, 2));
    options.share_score = static_cast<ShareScore>(bend() ? number(0, 255) : number(0, 2));
    options.representative_dtype = static_cast<RepresentativeDType>(bend() ? number(0, 255) : number(0, 1));
    options.window = mostly(number(1, 20));
    options.sink = mostly(number(0, 5));
    options.softmax_scale = scale();
    return options;
  }

 private:
  void place(TensorView& view) {
    constexpr __int128 kMostElements = 1 << 16;
    __int128 low = 0, high = 0;
    bool empty = false;
    for (int axis = 0; axis < view.rank; ++axis) {
      const std::int64_t extent = view.shape[static_cast<std::size_t>(axis)];
      const __int128 reach =
          static_cast<__int128>(extent > 0 ? extent - 1 : 0) * view.stride[static_cast<std::size_t>(axis)];
      empty = empty || extent <= 0;
      (reach < 0 ? low : high) += reach;
    }
    if (empty) {
      view.data = bytes_.ConsumeBool() ? nullptr : memory(1);
      return;
    }
    if (high - low >= kMostElements || bend()) return;
    const std::size_t bytes = static_cast<std::size_t>(high - low + 1) * static_cast<std::size_t>(size_of(view.dtype));
    std::byte* begin = memory(bytes);
    for (std::size_t i = 0; i < bytes && bytes_.remaining_bytes() > 0 && i < 64; ++i) {
      begin[i] = std::byte{bytes_.ConsumeIntegral<std::uint8_t>()};
    }
    view.data = begin - static_cast<std::int64_t>(low) * size_of(view.dtype);
  }

  std::byte* memory(std::size_t bytes) {
    memory_.emplace_back(new std::byte[bytes]());
    return memory_.back().get();
  }

  FuzzedDataProvider bytes_;
  std::deque<std::unique_ptr<std::byte[]>> memory_;
};

/// Memory that ends: what is asked beyond 64 MiB is refused, as a caller's allocator would.
class FuzzContext : public SerialContext {
 public:
  explicit FuzzContext(std::int64_t limit) : limit_(limit) {}
  void* allocate(std::size_t bytes) override { return bytes > 64u << 20 ? nullptr : SerialContext::allocate(bytes); }
  std::int64_t workspace_limit() const override { return limit_; }
  std::int32_t* error_word() const override { return &error_bits_; }

 private:
  std::int64_t limit_;
  mutable std::int32_t error_bits_ = 0;
};

/// Shapes that fit each other, before they are bent.
struct Shapes {
  std::int64_t rows, keys, heads, kv_heads, dim, value_dim, sequences, block_size;
};

inline Shapes draw_shapes(Arguments& a) {
  Shapes s{};
  s.rows = a.number(0, 12);
  s.keys = a.number(0, 24);
  s.kv_heads = a.number(1, 2);
  s.heads = s.kv_heads * a.number(1, 2);
  s.dim = a.number(8, 18);
  s.value_dim = a.number(8, 18);
  s.sequences = a.number(0, 3);
  s.block_size = a.number(1, 9);
  return s;
}

inline PackedBatch draw_batch(Arguments& a, const Shapes& s) {
  PackedBatch batch;
  batch.cu_seqlens_q = a.tensor(a.number(0, 1) != 0 ? DType::kInt32 : DType::kInt64, {s.sequences + 1});
  batch.cu_seqlens_k = a.tensor(a.number(0, 1) != 0 ? DType::kInt32 : DType::kInt64, {s.sequences + 1});
  batch.max_seqlen_q = a.mostly(std::max<std::int64_t>(s.rows, 1));
  batch.max_seqlen_k = a.mostly(std::max<std::int64_t>(s.keys, 1));
  return batch;
}

inline Selection draw_selection(Arguments& a, const Shapes& s) {
  Selection selection;
  selection.kind = static_cast<SelectionKind>(a.number(0, 2));
  selection.window = a.mostly(a.number(1, 9));
  selection.sink = a.mostly(a.number(0, 4));
  selection.block_size = a.mostly(s.block_size);
  selection.row_tile = a.mostly(1);
  const std::int64_t shares[] = {s.heads, s.kv_heads, 1};
  selection.blocks = a.tensor(DType::kInt32, {s.rows, shares[a.number(0, 2)], a.number(0, 3)});
  return selection;
}

/// A backend, a dtype and what goes with it.
struct Kinds {
  const Backend& backend;
  DType dtype, sums;
};

inline Kinds draw_kinds(Arguments& a) {
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};
  const DType dtype = kDTypes[a.number(0, 3)];
  const DType sums = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  return {a.number(0, 1) != 0 ? cpu_backend() : reference_backend(), dtype, sums};
}

}  // namespace moba::fuzz
