// The paged cache, page tables, and what is read out of a choice, with arguments of any kind (api_fuzz has the rest).
// Memory of the cache begins as its page says: lengths of 0, anything else anywhere.
#include <algorithm>
#include <cstring>
#include <vector>

#include "fuzz/api_arguments.h"

namespace {

using namespace moba;
using fuzz::Arguments;
using fuzz::Shapes;

/// As many pages are free or held as the pool has, and no page is held by none.
void check_pool(const PagePool& pool) {
  std::int64_t held = 0;
  for (std::int64_t page = 0; page < pool.pages(); ++page) {
    held += pool.holders(static_cast<std::int32_t>(page)) > 0;
  }
  fuzz::check(held + pool.free_pages() == pool.pages());
}

void call_pool(Arguments& a) {
  const std::int64_t most = a.mostly(a.number(0, 8));
  if (most > 1 << 20 && most < std::int64_t{1} << 31) return;  // memory that a machine may or may not have
  PagePool pool(most);
  for (int step = 0; step < 8; ++step) {
    std::vector<std::int32_t> pages(static_cast<std::size_t>(a.number(0, 4)));
    for (std::int32_t& page : pages) page = static_cast<std::int32_t>(a.mostly(a.number(0, 8)));
    fuzz::allow_error([&] {
      switch (a.number(0, 3)) {
        case 0: pool.take(pages); break;
        case 1: pool.share(pages); break;
        case 2: pool.release(pages); break;
        default: (void)pool.holders(pages.empty() ? 0 : pages[0]);
      }
    });
    if (pool.pages() <= 64) check_pool(pool);
  }
}

std::vector<SequenceTokens> draw_parts(Arguments& a, std::int64_t sequences, std::int64_t& rows) {
  std::vector<SequenceTokens> parts(static_cast<std::size_t>(a.number(0, 3)));
  std::int64_t sequence = a.number(0, 1);
  rows = 0;
  for (SequenceTokens& part : parts) {
    const std::int64_t count = a.number(0, 6);
    part = {a.mostly(sequence++ % std::max<std::int64_t>(sequences, 1)), a.mostly(count)};
    rows += count;
  }
  return parts;
}

void call_cache(Arguments& a, Context& context, const fuzz::Kinds& kinds, const Shapes& s) {
  const Backend& backend = kinds.backend;
  const DType dtype = kinds.dtype, sums = kinds.sums;
  const std::int64_t page_size = a.number(1, 4), pages = a.number(0, 8), sequences = a.number(0, 4);
  const std::int64_t block_size = a.number(0, 4) == 0 ? 0 : page_size * a.number(1, 3);
  PagePool pool(a.bend() ? a.number(0, 9) : pages);
  PagedKvCache cache;
  cache.k = a.tensor(dtype, {pages * page_size, s.kv_heads, s.dim});
  cache.v = a.tensor(dtype, {pages * page_size, s.kv_heads, s.value_dim});
  if (block_size > 0 || a.bend()) {
    cache.representatives = a.tensor(a.number(0, 1) != 0 ? dtype : sums, {pages, s.kv_heads, s.dim});
    cache.running_sums = a.tensor(sums, {sequences, s.kv_heads, s.dim});
  }
  cache.page_tables = a.tensor(DType::kInt32, {sequences, a.number(0, 6)});
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(sequences));
  cache.lengths = TensorView(lengths.data(), a.mostly(DType::kInt64), {a.mostly(sequences)});
  if (!a.bend()) cache.pool = &pool;
  cache.page_size = a.mostly(page_size);
  cache.block_size = a.mostly(block_size);
  for (int step = 0; step < 6; ++step) {
    std::int64_t rows = 0;
    const std::vector<SequenceTokens> parts = draw_parts(a, sequences, rows);
    fuzz::allow_error([&] {
      switch (a.number(0, 3)) {
        case 0:
          append(context, backend, cache, parts, a.tensor(dtype, {rows, s.kv_heads, s.dim}),
                 a.tensor(dtype, {rows, s.kv_heads, s.value_dim}));
          break;
        case 1: {
          AttentionOptions options = a.options();
          if (a.number(0, 7) != 0) options.block_size = block_size;
          const TensorView q = a.tensor(dtype, {rows, s.heads, s.dim});
          ReadCount reads;
          attend_cached(context, backend, cache, parts, options, q,
                        {a.tensor(dtype, {rows, s.heads, s.value_dim}), a.tensor(sums, {s.heads, rows})},
                        a.number(0, 1) != 0 ? &reads : nullptr);
          break;
        }
        case 2:
          fork(context, backend, cache, a.mostly(a.number(0, 3)), a.mostly(a.number(0, 3)), a.number(0, 12));
          break;
        default: truncate(context, backend, cache, a.mostly(a.number(0, 3)), a.mostly(a.number(0, 12)));
      }
    });
    check_pool(pool);
  }
}

/// `attend` and `select` over a page table whose entries are any numbers.
void call_pages(Arguments& a, Context& context, const fuzz::Kinds& kinds, const Shapes& s) {
  const auto& [backend, dtype, sums] = kinds;
  const std::int64_t page_size = a.number(1, 4), pages = a.number(0, 6);
  const PageTable table{a.tensor(DType::kInt32, {s.sequences, a.number(0, 6)}), a.mostly(page_size)};
  const TensorView q = a.tensor(dtype, {s.rows, s.heads, s.dim});
  const TensorView k = a.tensor(dtype, {pages * page_size, s.kv_heads, s.dim});
  const TensorView v = a.tensor(dtype, {pages * page_size, s.kv_heads, s.value_dim});
  const PackedBatch batch = fuzz::draw_batch(a, s);
  Selection selection = fuzz::draw_selection(a, s);
  if (!a.bend()) selection.block_size = page_size * a.number(1, 3);
  if (a.number(0, 2) == 0) {
    AttentionOptions options = a.options();
    options.block_size = a.mostly(selection.block_size);
    select(context, backend, options, q, k, a.tensor(a.number(0, 1) != 0 ? dtype : sums, {pages, s.kv_heads, s.dim}),
           batch, selection, table);
    return;
  }
  const Partial result{a.tensor(dtype, {s.rows, s.heads, s.value_dim}), a.tensor(sums, {s.heads, s.rows})};
  const AttendArgs args{q, k, v, batch, selection, a.scale(), result, table};
  if (a.number(0, 1) != 0) {
    attend(context, backend, args);
  } else {
    ReadCount reads;
    if (a.number(0, 1) != 0) reads.blocks_of_head = a.tensor(DType::kInt64, {s.sequences, s.kv_heads});
    count_reads(context, args, reads);
    fuzz::check(reads.keys_read <= reads.keys_chosen && reads.blocks_read <= reads.blocks_chosen);
  }
}

/// What a choice is worth, and what packed keys of it are read.
void call_diagnosis(Arguments& a, Context& context, const fuzz::Kinds& kinds, const Shapes& s) {
  const auto& [backend, dtype, sums] = kinds;
  const TensorView q = a.tensor(dtype, {s.rows, s.heads, s.dim}), k = a.tensor(dtype, {s.keys, s.kv_heads, s.dim});
  const PackedBatch batch = fuzz::draw_batch(a, s);
  const Selection selection = fuzz::draw_selection(a, s);
  const std::int64_t heads = selection.blocks.shape[1], budget = selection.blocks.shape[2];
  if (heads < 0 || heads > 4 || budget < 0 || budget > 4) return;
  const TensorView scores = a.tensor(sums, {s.rows, heads, budget});
  if (a.number(0, 1) != 0) {
    Diagnosis result{selection, scores, a.tensor(sums, {s.heads, s.rows})};
    if (a.number(0, 3) != 0) result.selection.kind = SelectionKind::kList;
    diagnose(context, backend, a.options(), q, k, batch, result);
    return;
  }
  const std::int64_t block_rows_here = block_rows(s.keys, s.sequences, s.block_size);
  const ChoiceRule rule{a.number(0, 1) != 0, a.mostly(a.number(0, 2)), ShareScore::kSumLogit,
                        a.bend() ? a.scale() : 1.0};
  list_scores(
      context,
      {q, a.tensor(a.number(0, 1) != 0 ? dtype : sums, {block_rows_here, s.kv_heads, s.dim}), batch, selection, rule},
      scores);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Arguments a(data, size);
  const fuzz::Kinds kinds = fuzz::draw_kinds(a);
  fuzz::FuzzContext context(a.bend() ? a.any_number() : std::int64_t{1} << 30);
  const Shapes shapes = fuzz::draw_shapes(a);
  const std::int64_t call = a.number(0, 7);
  fuzz::allow_error([&] {
    if (call == 0) return call_pool(a);
    if (call <= 4) return call_cache(a, context, kinds, shapes);
    if (call <= 6) return call_pages(a, context, kinds, shapes);
    call_diagnosis(a, context, kinds, shapes);
  });
  return 0;
}
