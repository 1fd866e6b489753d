// What a choice of blocks is worth. The scores are the reference's; choice and attention are the given backend's.
#include "moba/diagnose.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "checks.h"
#include "moba/pipeline.h"
#include "reference/list_scores.h"
#include "reference/rows.h"
#include "scratch_tensor.h"

namespace moba {
namespace {

/// mass[head, row] = exp(lse of the choice - lse of all keys).
void write_mass(const TensorView& chosen, const TensorView& full, const TensorView& mass) {
  for (std::int64_t head = 0; head < mass.shape[0]; ++head) {
    for (std::int64_t row = 0; row < mass.shape[1]; ++row) {
      const double of_all = reference::load_lse(full, head, row);
      // A row without a key misses nothing; roundings may take a share above 1.
      const double share =
          std::isinf(of_all) && of_all < 0 ? 1.0 : std::exp(reference::load_lse(chosen, head, row) - of_all);
      reference::store_lse(mass, head, row, share > 1.0 ? 1.0 : share);
    }
  }
}

}  // namespace

void list_scores(Context& context, const SelectArgs& args, const TensorView& scores) {
  const Backend& backend = reference_backend();
  check_select(backend, args);
  check_output(backend, "scores", scores, accumulator_dtype(args.q.dtype),
               {args.q.shape[0], args.selection.selection_heads(), args.selection.budget()},
               "[Tq, selection heads, budget]");
  reference::score_lists(context, args, scores);
}

void diagnose(Context& context, const Backend& backend, const AttentionOptions& options, ConstTensorView q,
              ConstTensorView k, const PackedBatch& batch, Diagnosis& result) {
  check_queries_and_keys(backend, q, k);
  if (backend.device() != DeviceKind::kCpu) {
    throw Error(ErrorCode::kUnsupported, std::string("backend is '") + backend.name() +
                                             "'; the diagnosis is written by the host. Use cpu_backend() or "
                                             "reference_backend(), or moba::torch_ops::diagnose for tensors on CUDA.");
  }
  const DType sums = accumulator_dtype(q.dtype);
  const std::int64_t rows = q.shape[0], heads = q.shape[1], dim = q.shape[2];
  check_output(backend, "mass", result.mass, sums, {heads, rows}, "[H, Tq]");
  const bool has_list = result.selection.kind == SelectionKind::kList;
  if (has_list) {
    check_tensor(backend, "selection.blocks", result.selection.blocks, DType::kInt32, {rows, -1, -1},
                 "[Tq, selection heads, budget]");
    require(result.selection.block_size >= 1, "selection.block_size", std::to_string(result.selection.block_size),
            "at least 1", "plan_selection() sets it.");
    check_offsets(backend, "cu_seqlens_k", batch.cu_seqlens_k);
    const DType dtype = representative_dtype(options, k.dtype);
    const std::int64_t block_count = block_rows(k.shape[0], batch.sequences(), result.selection.block_size);
    const ScratchTensor means(context, dtype, {block_count, k.shape[1], dim}, "the block representatives");
    check_output(backend, "scores", result.scores, sums,
                 {rows, result.selection.selection_heads(), result.selection.budget()},
                 "[Tq, selection heads, budget]");
    pool(context, backend, {k, batch, result.selection.block_size, means.view()});
    select(context, backend, options, q, k, means.view(), batch, result.selection);
    list_scores(context, {q, means.view(), batch, result.selection, rule_of(options, q)}, result.scores);
  }

  // The values are of no account for the lse; the keys serve.
  const ScratchTensor out(context, q.dtype, {rows, heads, dim}, "attention");
  const ScratchTensor chosen(context, sums, {heads, rows}, "lse of the choice");
  const ScratchTensor full(context, sums, {heads, rows}, "lse of all keys");
  const auto lse_of = [&](const Selection& selection, const ScratchTensor& lse) {
    attend(context, backend, {q, k, k, batch, selection, options.softmax_scale, {out.view(), lse.view()}});
    return lse.view();
  };
  write_mass(lse_of(result.selection, chosen), lse_of(Selection{}, full), result.mass);
}

}  // namespace moba
