// The whole data flow on one screen: q, k, v -> pool -> select (score inside) -> attend -> out, lse.
#include "moba/pipeline.h"

#include <cmath>

#include "checks.h"
#include "scratch.h"
#include "scratch_tensor.h"
#include "selectors/selector.h"

namespace moba {
namespace {

double scale_or_default(double softmax_scale, const ConstTensorView& q) {
  return softmax_scale == 0.0 && q.rank == 3 ? 1.0 / std::sqrt(static_cast<double>(q.shape[2])) : softmax_scale;
}

}  // namespace

ChoiceRule rule_of(const AttentionOptions& options, const ConstTensorView& q) {
  return {options.force_previous, options.sink_blocks, options.share_score, scale_or_default(options.softmax_scale, q)};
}

Selection plan_selection(const AttentionOptions& options, std::int64_t total_q, std::int64_t heads,
                         std::int64_t kv_heads, std::int64_t max_seqlen_k) {
  return selector_of(options.kind).plan(options, {total_q, heads, kv_heads, max_seqlen_k});
}

void pool(Context& context, const Backend& backend, const PoolArgs& args) {
  check_pool(backend, args);
  backend.pool(context, args);
}

void score(Context& context, const Backend& backend, const ScoreArgs& args) {
  check_score(backend, args);
  backend.score(context, args);
}

void invert(Context& context, const Backend& backend, const InvertArgs& args) {
  check_invert(backend, args);
  backend.invert(context, args);
}

void merge(Context& context, const Backend& backend, const MergeArgs& args) {
  check_merge(backend, args);
  backend.merge(context, args);
}

void select(Context& context, const Backend& backend, const AttentionOptions& options, ConstTensorView q,
            ConstTensorView k, ConstTensorView representatives, const PackedBatch& batch, Selection& selection,
            const PageTable& page_table) {
  const Selector& selector = selector_of(options.kind);
  if (selection.kind != SelectionKind::kList || selector.choose == nullptr) return;
  check_queries_and_keys(backend, q, k);

  if (representatives.present()) {
    const SelectArgs args{q, representatives, batch, selection, rule_of(options, q), page_table};
    check_select(backend, args);
    if (selection.budget() > 0) selector.choose(context, backend, options, args);
    return;
  }
  require(!page_table.present(), "page_table", "present without representatives", "absent where they are pooled here",
          "Pass the representatives that a PagedKvCache keeps.");
  require(selection.block_size >= 1, "selection.block_size", std::to_string(selection.block_size), "at least 1",
          "plan_selection() sets it.");
  check_offsets(backend, "cu_seqlens_k", batch.cu_seqlens_k);
  const std::int64_t rows = block_rows(k.shape[0], batch.sequences(), selection.block_size);
  const DType dtype = representative_dtype(options, k.dtype);
  const ScratchTensor pooled(context, dtype, {rows, k.shape[1], k.shape[2]}, "the block representatives", k.device);
  const SelectArgs args{q, pooled.view(), batch, selection, rule_of(options, q)};
  check_select(backend, args);
  if (selection.budget() == 0) return;  // a list of nothing, which may lie nowhere
  pool(context, backend, {k, batch, selection.block_size, pooled.view()});
  selector.choose(context, backend, options, args);
}

void attend(Context& context, const Backend& backend, AttendArgs args) {
  args.softmax_scale = scale_or_default(args.softmax_scale, args.q);
  check_attend(backend, args);
  backend.attend(context, args);
}

void attend_backward(Context& context, const Backend& backend, AttendBackwardArgs args) {
  args.softmax_scale = scale_or_default(args.softmax_scale, args.q);
  check_attend_backward(backend, args);
  backend.attend_backward(context, args);
}

void attention(Context& context, const Backend& backend, const AttentionOptions& options, ConstTensorView q,
               ConstTensorView k, ConstTensorView v, const PackedBatch& batch, Partial result) {
  check_queries_and_keys(backend, q, k);
  Selection selection = plan_selection(options, q.shape[0], q.shape[1], k.shape[1], batch.max_seqlen_k);
  check_countable("the list of chosen blocks (Tq x H x budget)", selection.blocks);
  const std::int64_t entries = selection.blocks.present() ? selection.blocks.numel() : 0;
  Scratch<std::int32_t> list(context, entries, "the list of chosen blocks");
  selection.blocks.data = list.data();
  selection.blocks.device = q.device;
  const AttendArgs args{q, k, v, batch, selection, scale_or_default(options.softmax_scale, q), result};
  check_attend(backend, args);  // before the choice, so that a bad argument costs nothing

  select(context, backend, options, q, k, {}, batch, selection);
  backend.attend(context, args);
}

}  // namespace moba
