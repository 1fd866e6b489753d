#include "device_attend.h"

#include "checks.h"
#include "moba/device_pages.h"
#include "moba/pipeline.h"
#include "scratch.h"

namespace moba {
namespace {

template <class View>
View rows_of(View view, std::int64_t first, std::int64_t count) {
  const auto bytes = first * view.stride[0] * size_of(view.dtype);
  view.data = static_cast<std::conditional_t<std::is_same_v<View, TensorView>, char, const char>*>(view.data) + bytes;
  view.shape[0] = count;
  return view;
}

/// The columns of lse [H, rows].
Partial rows_of_partial(const Partial& result, std::int64_t first, std::int64_t count) {
  TensorView lse = result.lse;
  lse.data = static_cast<char*>(lse.data) + first * size_of(lse.dtype);
  lse.shape[1] = count;
  return {rows_of(result.out, first, count), lse};
}

/// One row each of several sequences.
void decode_rows(Context& context, const Backend& backend, const PagedKvCache& cache,
                 std::span<const std::int64_t> sequences, const AttentionOptions& options, const ConstTensorView& q,
                 const Partial& result) {
  // Of the capacity and not of the lengths: a captured step is right for every length that comes.
  Selection selection = plan_selection(options, q.shape[0], q.shape[1], cache.k.shape[1], cache.capacity());
  const std::int64_t entries = selection.kind == SelectionKind::kList ? selection.blocks.numel() : 0;
  const Scratch<std::int32_t> list(context, entries, "the list of chosen blocks");
  selection.blocks.data = list.data();
  selection.blocks.device = q.device;
  const ChoiceRule rule = rule_of(options, q);
  backend.device_pages()->decode(context, {q, &cache, sequences, selection, rule, rule.softmax_scale, result});
}

/// The last rows of one sequence, copied into one piece.
void attend_prompt(Context& context, const Backend& backend, const PagedKvCache& cache, const SequenceTokens& part,
                   const AttentionOptions& options, const ConstTensorView& q, const Partial& result) {
  const std::int64_t length = cache.length(part.sequence), kv_heads = cache.k.shape[1], dim = cache.k.shape[2];
  const std::int64_t bytes = size_of(cache.k.dtype), blocks = cache.block_size == 0 ? 0 : length / cache.block_size + 1;
  const Scratch<char> k(context, length * kv_heads * dim * bytes, "keys in one piece");
  const Scratch<char> v(context, length * kv_heads * cache.v.shape[2] * bytes, "values in one piece");
  const Scratch<char> representatives(context, blocks * kv_heads * dim * bytes, "representatives in one piece");
  const Scratch<std::int64_t> offsets(context, 4, "offsets of the sequence");
  GatheredSequence sequence;
  sequence.k = TensorView(k.data(), cache.k.dtype, {length, kv_heads, dim}, q.device);
  sequence.v = TensorView(v.data(), cache.v.dtype, {length, kv_heads, cache.v.shape[2]}, q.device);
  if (blocks > 0) {
    sequence.representatives = TensorView(representatives.data(), cache.k.dtype, {blocks, kv_heads, dim}, q.device);
  }
  sequence.cu_seqlens_q = TensorView(offsets.data(), DType::kInt64, {2}, q.device);
  sequence.cu_seqlens_k = TensorView(offsets.data() + 2, DType::kInt64, {2}, q.device);
  backend.device_pages()->gather(context, cache, part.sequence, part.count, sequence);

  const PackedBatch batch{sequence.cu_seqlens_q, sequence.cu_seqlens_k, part.count, length};
  Selection selection = plan_selection(options, part.count, q.shape[1], kv_heads, length);
  const std::int64_t entries = selection.kind == SelectionKind::kList ? selection.blocks.numel() : 0;
  const Scratch<std::int32_t> list(context, entries, "the list of chosen blocks");
  selection.blocks.data = list.data();
  selection.blocks.device = q.device;
  select(context, backend, options, q, sequence.k, sequence.representatives, batch, selection);
  attend(context, backend, {q, sequence.k, sequence.v, batch, selection, options.softmax_scale, result});
}

}  // namespace

void attend_device_pages(Context& context, const Backend& backend, const PagedKvCache& cache,
                         std::span<const SequenceTokens> parts, const AttentionOptions& options,
                         const ConstTensorView& q, const Partial& result) {
  check_tensor(backend, "out", result.out, q.dtype, {q.shape[0], q.shape[1], cache.v.shape[2]}, "[rows, H, Dv]");
  check_tensor(backend, "lse", result.lse, accumulator_dtype(q.dtype), {q.shape[1], q.shape[0]}, "[H, rows]");
  const Selection planned = plan_selection(options, q.shape[0], q.shape[1], cache.k.shape[1], cache.capacity());
  require(planned.kind != SelectionKind::kList || options.block_size == cache.block_size, "block_size",
          std::to_string(options.block_size), "that of the cache, " + std::to_string(cache.block_size),
          "Make the cache for this block size; a cache of block size 0 serves kind full.");
  SerialContext host;
  const Scratch<std::int64_t> sequences(host, static_cast<std::int64_t>(parts.size()), "sequences of a step");
  std::int64_t first = 0, waiting = 0;
  const auto decode_waiting = [&] {
    if (waiting == 0) return;
    const std::int64_t begin = first - waiting;
    decode_rows(context, backend, cache, {sequences.data(), static_cast<std::size_t>(waiting)}, options,
                rows_of(q, begin, waiting), rows_of_partial(result, begin, waiting));
    waiting = 0;
  };
  for (const SequenceTokens& part : parts) {
    if (part.count > 1) {
      decode_waiting();
      attend_prompt(context, backend, cache, part, options, rows_of(q, first, part.count),
                    rows_of_partial(result, first, part.count));
    } else if (part.count == 1) {
      sequences[waiting++] = part.sequence;
    }
    first += part.count;
  }
  decode_waiting();
}

}  // namespace moba
