// The public C++ API with arguments of any kind: every call works or throws moba::Error before it touches memory that
// is not there. (paged_fuzz has the calls that follow page tables.)
#include <algorithm>
#include <vector>

#include "fuzz/api_arguments.h"

namespace {

using namespace moba;
using fuzz::Arguments;
using fuzz::Shapes;

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
  const fuzz::Kinds kinds = fuzz::draw_kinds(a);
  fuzz::FuzzContext context(a.bend() ? a.any_number() : std::int64_t{1} << 30);
  const Shapes shapes = fuzz::draw_shapes(a);
  constexpr decltype(&call_attend) kCalls[] = {call_attention, call_attend, call_gate, call_merge, call_cache};
  const std::int64_t call = a.number(0, 4);
  fuzz::allow_error([&] { kCalls[call](a, context, kinds.backend, shapes, kinds.dtype, kinds.sums); });
  fuzz::allow_error([&] {
    const Selection planned =
        plan_selection(a.options(), a.any_number(), a.any_number(), a.any_number(), a.any_number());
    fuzz::check(planned.kind != SelectionKind::kList || planned.budget() >= 0);
  });
  return 0;
}
