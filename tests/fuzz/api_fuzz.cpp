// The public C++ API with arguments of any kind: every call works or throws moba::Error before it touches memory that
// is not there. Most arguments are right, and a few are bent, so that every check is reached.
#include <fuzzer/FuzzedDataProvider.h>

#include <deque>
#include <limits>
#include <memory>
#include <vector>

#include "fuzz/fuzz.h"
#include "moba/moba.h"

namespace {

using namespace moba;

constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();

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

Shapes draw_shapes(Arguments& a) {
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

PackedBatch draw_batch(Arguments& a, const Shapes& s) {
  PackedBatch batch;
  batch.cu_seqlens_q = a.tensor(a.number(0, 1) != 0 ? DType::kInt32 : DType::kInt64, {s.sequences + 1});
  batch.cu_seqlens_k = a.tensor(a.number(0, 1) != 0 ? DType::kInt32 : DType::kInt64, {s.sequences + 1});
  batch.max_seqlen_q = a.mostly(std::max<std::int64_t>(s.rows, 1));
  batch.max_seqlen_k = a.mostly(std::max<std::int64_t>(s.keys, 1));
  return batch;
}

Selection draw_selection(Arguments& a, const Shapes& s) {
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

void call_attention(Arguments& a, Context& context, const Backend& backend, const Shapes& s, DType dtype, DType sums) {
  const TensorView q = a.tensor(dtype, {s.rows, s.heads, s.dim}), k = a.tensor(dtype, {s.keys, s.kv_heads, s.dim});
  const TensorView v = a.tensor(dtype, {s.keys, s.kv_heads, s.value_dim});
  const Partial result{a.tensor(dtype, {s.rows, s.heads, s.value_dim}), a.tensor(sums, {s.heads, s.rows})};
  const PackedBatch batch = draw_batch(a, s);
  const AttentionOptions options = a.options();
  if (a.number(0, 3) == 0) {
    const SelfCheckReport report = self_check(context, backend, options, q, k, v, batch, 1);
    fuzz::check(!report.summary().empty());
    return;
  }
  attention(context, backend, options, q, k, v, batch, result);
}

void call_attend(Arguments& a, Context& context, const Backend& backend, const Shapes& s, DType dtype, DType sums) {
  const TensorView q = a.tensor(dtype, {s.rows, s.heads, s.dim}), k = a.tensor(dtype, {s.keys, s.kv_heads, s.dim});
  const TensorView v = a.tensor(dtype, {s.keys, s.kv_heads, s.value_dim});
  const TensorView out = a.tensor(dtype, {s.rows, s.heads, s.value_dim}), lse = a.tensor(sums, {s.heads, s.rows});
  const PackedBatch batch = draw_batch(a, s);
  const Selection selection = draw_selection(a, s);
  if (a.number(0, 1) == 0) {
    attend(context, backend, {q, k, v, batch, selection, a.scale(), {out, lse}});
    return;
  }
  const TensorView dout = a.tensor(dtype, {s.rows, s.heads, s.value_dim});
  const TensorView dlse = a.number(0, 1) != 0 ? TensorView() : a.tensor(sums, {s.heads, s.rows});
  attend_backward(
      context, backend,
      {q, k, v, batch, selection, a.scale(), out, lse, dout, dlse, a.tensor(dtype, {s.rows, s.heads, s.dim}),
       a.tensor(dtype, {s.keys, s.kv_heads, s.dim}), a.tensor(dtype, {s.keys, s.kv_heads, s.value_dim})});
}

void call_gate(Arguments& a, Context& context, const Backend& backend, const Shapes& s, DType dtype, DType sums) {
  const PackedBatch batch = draw_batch(a, s);
  const std::int64_t block_rows_here = block_rows(s.keys, s.sequences, s.block_size);
  const TensorView q = a.tensor(dtype, {s.rows, s.heads, s.dim}), k = a.tensor(dtype, {s.keys, s.kv_heads, s.dim});
  const TensorView representatives = a.tensor(a.number(0, 1) != 0 ? dtype : sums, {block_rows_here, s.kv_heads, s.dim});
  switch (a.number(0, 3)) {
    case 0: pool(context, backend, {k, batch, a.mostly(s.block_size), representatives}); return;
    case 1: {
      const std::int64_t blocks = (std::max<std::int64_t>(s.keys, 1) + s.block_size - 1) / s.block_size;
      score(context, backend,
            {q, representatives, batch, a.mostly(s.block_size), a.tensor(sums, {s.rows, s.heads, blocks})});
      return;
    }
    case 2: {
      Selection selection = draw_selection(a, s);
      select(context, backend, a.options(), q, k, a.number(0, 1) != 0 ? representatives : TensorView(), batch,
             selection);
      return;
    }
    default: {
      const Selection selection = draw_selection(a, s);
      const std::int64_t heads = selection.blocks.shape[1], budget = selection.blocks.shape[2];
      if (heads < 0 || heads > 4 || budget < 0 || budget > 4) return;
      invert(context, backend,
             {batch,
              selection,
              a.mostly(s.rows),
              a.mostly(s.keys),
              {a.tensor(DType::kInt64, {heads * block_rows_here + 1}),
               a.tensor(DType::kInt32, {s.rows * heads * budget, 2})}});
    }
  }
}

void call_merge(Arguments& a, Context& context, const Backend& backend, const Shapes& s, DType dtype, DType sums) {
  std::vector<Partial> parts;
  for (std::int64_t i = a.number(0, 3); i > 0; --i) {
    parts.push_back({a.tensor(a.number(0, 1) != 0 ? dtype : sums, {s.rows, s.heads, s.value_dim}),
                     a.tensor(sums, {s.heads, s.rows})});
  }
  const Partial result{a.tensor(dtype, {s.rows, s.heads, s.value_dim}), a.tensor(sums, {s.heads, s.rows})};
  merge(context, backend, {parts, result});
}

void call_cache(Arguments& a, Context& context, const Backend& backend, const Shapes& s, DType dtype, DType sums) {
  KvCache cache;
  cache.k = a.tensor(dtype, {s.keys, s.kv_heads, s.dim});
  cache.v = a.tensor(dtype, {s.keys, s.kv_heads, s.value_dim});
  cache.representatives =
      a.tensor(a.number(0, 1) != 0 ? dtype : sums, {block_rows(s.keys, 1, s.block_size), s.kv_heads, s.dim});
  cache.running_sum = a.tensor(sums, {s.kv_heads, s.dim});
  cache.block_size = a.mostly(s.block_size);
  cache.length = a.mostly(0);
  for (int step = 0; step < 4; ++step) {
    const std::int64_t count = a.number(0, 5);
    switch (a.number(0, 2)) {
      case 0:
        append(context, backend, cache, a.tensor(dtype, {count, s.kv_heads, s.dim}),
               a.tensor(dtype, {count, s.kv_heads, s.value_dim}));
        break;
      case 1: {
        AttentionOptions options = a.options();
        if (a.number(0, 3) != 0) options.block_size = s.block_size;
        const TensorView q = a.tensor(dtype, {count, s.heads, s.dim});
        attend_cached(context, backend, cache, options, q,
                      {a.tensor(dtype, {count, s.heads, s.value_dim}), a.tensor(sums, {s.heads, count})});
        break;
      }
      default: truncate(context, backend, cache, a.mostly(a.number(0, 24)));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Arguments a(data, size);
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};
  const DType dtype = kDTypes[a.number(0, 3)];
  const DType sums = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const Backend& backend = a.number(0, 1) != 0 ? cpu_backend() : reference_backend();
  FuzzContext context(a.bend() ? a.any_number() : std::int64_t{1} << 30);
  const Shapes shapes = draw_shapes(a);
  constexpr decltype(&call_attend) kCalls[] = {call_attention, call_attend, call_gate, call_merge, call_cache};
  fuzz::allow_error([&] { kCalls[a.number(0, 4)](a, context, backend, shapes, dtype, sums); });
  fuzz::allow_error([&] {
    const Selection planned =
        plan_selection(a.options(), a.any_number(), a.any_number(), a.any_number(), a.any_number());
    fuzz::check(planned.kind != SelectionKind::kList || planned.budget() >= 0);
  });
  return 0;
}
