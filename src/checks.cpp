#include "checks.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace moba {
namespace {

std::string device_text(const Device& device) {
  return device.kind == DeviceKind::kCpu ? "the CPU" : "CUDA device " + std::to_string(device.index);
}

std::string list_text(std::initializer_list<std::int64_t> shape) {
  std::string text = "[";
  for (std::int64_t extent : shape) {
    if (text.size() > 1) text += ", ";
    text += extent < 0 ? "any" : std::to_string(extent);
  }
  return text + "]";
}

void check_device(const Backend& backend, const char* argument, const Device& device) {
  if (device.kind == backend.device()) return;
  const bool host_backend = backend.device() == DeviceKind::kCpu;
  throw Error(ErrorCode::kUnsupported,
              std::string(argument) + " is on " + device_text(device) + "; the backend '" + backend.name() +
                  "' works on " + (host_backend ? "the CPU" : "CUDA devices") + ". " +
                  (host_backend ? "Copy it to the CPU, or call the PyTorch operators (libmoba.attention in Python, "
                                  "moba::torch_ops::attention in C++), which have a backend for CUDA."
                                : "Copy it to the GPU, or use cpu_backend()."));
}

void check_dim(const char* argument, const char* what, std::int64_t dim) {
  require(dim >= kMinHeadDim && dim <= kMaxHeadDim, std::string("the ") + what + " of " + argument, std::to_string(dim),
          "between " + std::to_string(kMinHeadDim) + " and " + std::to_string(kMaxHeadDim),
          "Pad it with zeros, or split the head.");
}

}  // namespace

void check_offsets(const Backend& backend, const char* argument, const ConstTensorView& offsets) {
  check_rank(argument, offsets, 1, "[sequences + 1]");
  require(offsets.dtype == DType::kInt32 || offsets.dtype == DType::kInt64, std::string("the dtype of ") + argument,
          name_of(offsets.dtype), "int32 or int64", "Convert it.");
  check_device(backend, argument, offsets.device);
  require(offsets.shape[0] >= 1, std::string("the length of ") + argument, std::to_string(offsets.shape[0]),
          "at least 1: a zero and the end of each sequence", "Pass [0, total] for one sequence.");
  require(offsets.shape[0] <= std::numeric_limits<std::int32_t>::max(), std::string("the length of ") + argument,
          std::to_string(offsets.shape[0]), "below 2^31: sequences are counted in 32 bits",
          "Call once for each part of the batch.");
  require(offsets.data != nullptr, std::string("the data of ") + argument, "null", "readable memory",
          "Set the pointer of the view.");
}

namespace {

void check_maximum(const char* argument, std::int64_t maximum, std::int64_t tokens) {
  require(maximum >= (tokens > 0 ? 1 : 0), argument, std::to_string(maximum),
          "an upper bound of the sequence lengths, at least 1 where there are tokens",
          "Pass the longest length, or the number of tokens.");
}

void check_batch(const Backend& backend, const PackedBatch& batch, std::int64_t total_q, std::int64_t total_k) {
  check_offsets(backend, "cu_seqlens_q", batch.cu_seqlens_q);
  check_offsets(backend, "cu_seqlens_k", batch.cu_seqlens_k);
  require(batch.cu_seqlens_q.shape[0] == batch.cu_seqlens_k.shape[0], "the length of cu_seqlens_q",
          std::to_string(batch.cu_seqlens_q.shape[0]),
          "that of cu_seqlens_k, " + std::to_string(batch.cu_seqlens_k.shape[0]),
          "Both hold one entry a sequence and a leading zero.");
  check_maximum("max_seqlen_q", batch.max_seqlen_q, total_q);
  check_maximum("max_seqlen_k", batch.max_seqlen_k, total_k);
}

void check_block_size(std::int64_t block_size) {
  require(block_size >= 1, "block_size", std::to_string(block_size), "at least 1",
          "The published values are 512 to 4096.");
}

void check_heads(const ConstTensorView& q, const ConstTensorView& keys, const char* keys_name) {
  const std::int64_t heads = q.shape[1], kv_heads = keys.shape[1];
  require(kv_heads >= 1, std::string("the number of heads of ") + keys_name, std::to_string(kv_heads), "at least 1",
          "Pass [tokens, heads, dim].");
  require(heads >= 1 && heads % kv_heads == 0, "the number of heads of q", std::to_string(heads),
          std::string("a positive multiple of that of ") + keys_name + ", " + std::to_string(kv_heads),
          "Query heads share key/value heads in groups of equal size.");
}

void check_list(const Backend& backend, const Selection& selection, std::int64_t rows, std::int64_t heads,
                std::int64_t kv_heads) {
  check_block_size(selection.block_size);
  if (selection.row_tile != 1) {
    throw Error(ErrorCode::kUnsupported, "selection.row_tile is " + std::to_string(selection.row_tile) +
                                             "; the backend '" + backend.name() + "' has one list a row. Set it to 1.");
  }
  check_tensor(backend, "selection.blocks", selection.blocks, DType::kInt32, {rows, -1, -1},
               "[Tq, selection heads, budget]");
  const std::int64_t selection_heads = selection.selection_heads();
  require(selection_heads == heads || selection_heads == kv_heads || selection_heads == 1,
          "the number of selection heads (axis 1 of selection.blocks)", std::to_string(selection_heads),
          "H = " + std::to_string(heads) + ", HK = " + std::to_string(kv_heads) + " or 1",
          "plan_selection() gives the shape.");
  require(selection.budget() <= std::numeric_limits<std::int32_t>::max(), "the budget (last axis of selection.blocks)",
          std::to_string(selection.budget()), "below 2^31: slots are counted in 32 bits",
          "A row has no more past blocks than that.");
}

void check_selection(const Backend& backend, const Selection& selection, std::int64_t rows, std::int64_t heads,
                     std::int64_t kv_heads) {
  switch (selection.kind) {
    case SelectionKind::kAll: return;
    case SelectionKind::kSpan:
      require(selection.window >= 1, "selection.window", std::to_string(selection.window),
              "at least 1: a row always sees its own key", "Set the window, or use kind full.");
      require(selection.sink >= 0, "selection.sink", std::to_string(selection.sink), "at least 0",
              "0 means no sink tokens.");
      return;
    case SelectionKind::kList: check_list(backend, selection, rows, heads, kv_heads); return;
  }
}

void check_scale(double scale) {
  require(std::isfinite(scale) && scale > 0, "softmax_scale", std::to_string(scale), "positive and finite",
          "The usual value is 1/sqrt(head_dim); the options take 0 for it.");
}

void check_partial(const Backend& backend, const char* out_name, const char* lse_name, const Partial& partial,
                   DType dtype, std::int64_t rows, std::int64_t heads, std::int64_t value_dim) {
  check_output(backend, out_name, partial.out, dtype, {rows, heads, value_dim}, "[Tq, H, Dv]");
  check_output(backend, lse_name, partial.lse, accumulator_dtype(dtype), {heads, rows}, "[H, Tq]");
}

/// The table of a call over the pool of `pages` pages.
void check_page_table(const Backend& backend, const PageTable& table, std::int64_t sequences) {
  if (!backend.supports_pages()) {
    throw Error(ErrorCode::kUnsupported, std::string("page_table is present; the backend '") + backend.name() +
                                             "' reads packed keys only. Copy the pages together, or use a backend "
                                             "whose supports_pages() is true, such as cpu_backend().");
  }
  check_tensor(backend, "page_table.pages", table.pages, DType::kInt32, {sequences, -1},
               "[sequences, most pages of a sequence]");
  check_page_size(table.page_size);
  require(table.pages.shape[1] <= std::numeric_limits<std::int64_t>::max() / table.page_size,
          "the width of page_table.pages", std::to_string(table.pages.shape[1]), "of fewer than 2^63 tokens",
          "No memory holds such a sequence.");
}

void check_page_divides(const PageTable& table, const Selection& selection) {
  require(selection.kind != SelectionKind::kList || selection.block_size % table.page_size == 0, "page_table.page_size",
          std::to_string(table.page_size), "a divisor of the block size, " + std::to_string(selection.block_size),
          "Blocks are whole pages.");
}

}  // namespace

void require(bool holds, const std::string& argument, const std::string& value, const std::string& rule,
             const std::string& remedy) {
  if (holds) return;
  throw Error(ErrorCode::kInvalidArgument, argument + " is " + value + "; it must be " + rule + ". " + remedy);
}

void check_float(const Backend& backend, const char* argument, DType dtype) {
  if (backend.supports(dtype)) return;
  std::string known;
  for (DType candidate : {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    if (backend.supports(candidate)) known += (known.empty() ? "" : ", ") + std::string(name_of(candidate));
  }
  throw Error(ErrorCode::kUnsupported, std::string(argument) + " has dtype " + name_of(dtype) + "; the backend '" +
                                           backend.name() + "' supports " + known + ". Convert it" +
                                           (dtype == DType::kFloat64 ? ", or use reference_backend()." : "."));
}

void check_rank(const char* argument, const ConstTensorView& view, int rank, const char* axes) {
  require(view.present(), argument, "absent", std::string("a tensor ") + axes, "Pass it.");
  require(view.rank == rank, std::string("the rank of ") + argument, std::to_string(view.rank),
          std::to_string(rank) + ", " + axes, "Reshape the tensor.");
}

void check_page_size(std::int64_t page_size) {
  require(page_size >= 1, "page_size", std::to_string(page_size), "at least 1 token", "Usual values are 16 to 256.");
}

std::string shape_text(const ConstTensorView& view) {
  std::string text = "[";
  for (int axis = 0; axis < view.rank; ++axis) {
    if (axis > 0) text += ", ";
    text += std::to_string(view.shape[static_cast<std::size_t>(axis)]);
  }
  return text + "]";
}

void check_countable(const std::string& argument, const ConstTensorView& view) {
  std::int64_t left = std::numeric_limits<std::int64_t>::max() / 8;  // in elements of at most 8 bytes
  for (int axis = 0; axis < view.rank; ++axis) {
    const std::int64_t extent = view.shape[static_cast<std::size_t>(axis)];
    require(extent >= 0, argument, shape_text(view), "of no negative extent", "Check the shape of the view.");
    if (extent > 1) {
      require(extent <= left, argument, shape_text(view), "of fewer than 2^63 bytes", "No memory holds such a tensor.");
      left /= extent;
    }
  }
}

/// Offsets of elements are computed before anything is read, of tensors without elements too.
void check_strides(const std::string& name, const ConstTensorView& view) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max() / 64;  // of 8 bytes, summed over the axes
  for (int i = 0; i < view.rank; ++i) {
    const auto axis = static_cast<std::size_t>(i);
    const std::int64_t extent = view.shape[axis], stride = view.stride[axis];
    if (extent <= 1) continue;
    require(stride <= kMost / extent && stride >= -kMost / extent,
            "the stride of axis " + std::to_string(i) + " of " + name, std::to_string(stride),
            "of fewer than 2^63 bytes from end to end", "No memory holds such a tensor.");
  }
}

void check_tensor(const Backend& backend, const char* argument, const ConstTensorView& view, DType dtype,
                  std::initializer_list<std::int64_t> shape, const char* axes) {
  check_rank(argument, view, static_cast<int>(shape.size()), axes);
  const std::string name = argument;
  bool same = true;
  std::size_t axis = 0;
  for (std::int64_t extent : shape) {
    same = same && view.shape[axis] >= 0 && (extent < 0 || view.shape[axis] == extent);
    ++axis;
  }
  check_countable("the shape of " + name, view);
  require(same, "the shape of " + name, shape_text(view), std::string(axes) + " = " + list_text(shape),
          "Check it against the other arguments.");
  require(
      view.dtype == dtype, "the dtype of " + name, name_of(view.dtype), name_of(dtype),
      "Convert it: all of q, k, v, out and the gradients share one dtype; lse and scores are float32 (float64 beside "
      "float64); lists are int32.");
  check_device(backend, argument, view.device);
  const std::size_t last = static_cast<std::size_t>(view.rank - 1);
  require(view.shape[last] <= 1 || view.stride[last] == 1, "the stride of the last axis of " + name,
          std::to_string(view.stride[last]), "1", "Make the tensor contiguous.");
  check_strides(name, view);
  require(view.data != nullptr || view.numel() == 0, "the data of " + name, "null",
          "memory of shape " + shape_text(view), "Set the pointer of the view.");
}

void check_output(const Backend& backend, const char* argument, const TensorView& view, DType dtype,
                  std::initializer_list<std::int64_t> shape, const char* axes) {
  check_tensor(backend, argument, view, dtype, shape, axes);
  for (std::size_t axis = 0; axis < static_cast<std::size_t>(view.rank); ++axis) {
    require(view.shape[axis] <= 1 || view.stride[axis] != 0 || view.numel() == 0,
            "the stride of axis " + std::to_string(axis) + " of " + argument, "0", "non-zero, since it is written",
            "Give it memory of its own; a broadcast tensor cannot be an output.");
  }
}

void check_representatives(const Backend& backend, const char* argument, const ConstTensorView& view, DType keys,
                           std::initializer_list<std::int64_t> shape, const char* axes) {
  const bool wide = view.present() && view.dtype == accumulator_dtype(keys);
  check_tensor(backend, argument, view, wide ? accumulator_dtype(keys) : keys, shape, axes);
}

void check_queries_and_keys(const Backend& backend, const ConstTensorView& q, const ConstTensorView& k) {
  check_rank("q", q, 3, "[Tq, H, D]");
  check_float(backend, "q", q.dtype);
  check_tensor(backend, "q", q, q.dtype, {-1, -1, -1}, "[Tq, H, D]");
  check_dim("q", "head dim (last axis)", q.shape[2]);
  check_tensor(backend, "k", k, q.dtype, {-1, -1, q.shape[2]}, "[Tk, HK, D]");
  check_heads(q, k, "k");
}

void check_pool(const Backend& backend, const PoolArgs& args) {
  check_rank("k", args.k, 3, "[Tk, HK, D]");
  check_float(backend, "k", args.k.dtype);
  check_tensor(backend, "k", args.k, args.k.dtype, {-1, -1, -1}, "[Tk, HK, D]");
  check_dim("k", "head dim (last axis)", args.k.shape[2]);
  check_offsets(backend, "cu_seqlens_k", args.batch.cu_seqlens_k);
  check_maximum("max_seqlen_k", args.batch.max_seqlen_k, args.k.shape[0]);
  check_block_size(args.block_size);
  const std::int64_t rows = block_rows(args.k.shape[0], args.batch.sequences(), args.block_size);
  const std::initializer_list<std::int64_t> shape = {rows, args.k.shape[1], args.k.shape[2]};
  constexpr const char* kAxes = "[block_rows(Tk, sequences, B), HK, D]";
  check_representatives(backend, "representatives", args.representatives, args.k.dtype, shape, kAxes);
  check_output(backend, "representatives", args.representatives, args.representatives.dtype, shape, kAxes);
}

namespace {

/// q, representatives and batch of `score` and `select`.
void check_gate(const Backend& backend, const ConstTensorView& q, const ConstTensorView& representatives,
                const PackedBatch& batch, const PageTable& table = {}) {
  check_rank("q", q, 3, "[Tq, H, D]");
  check_float(backend, "q", q.dtype);
  check_tensor(backend, "q", q, q.dtype, {-1, -1, -1}, "[Tq, H, D]");
  check_dim("q", "head dim (last axis)", q.shape[2]);
  check_representatives(backend, "representatives", representatives, q.dtype, {-1, -1, q.shape[2]}, "[R, HK, D]");
  check_heads(q, representatives, "representatives");
  check_batch(backend, batch, q.shape[0], 0);
  if (table.present()) return check_page_table(backend, table, batch.sequences());
  require(representatives.shape[0] >= batch.sequences(), "the number of rows of representatives",
          std::to_string(representatives.shape[0]),
          "block_rows(Tk, sequences, B), at least the " + std::to_string(batch.sequences()) + " sequences",
          "Pass all the rows that pool fills.");
}

}  // namespace

void check_score(const Backend& backend, const ScoreArgs& args) {
  check_gate(backend, args.q, args.representatives, args.batch);
  check_block_size(args.block_size);
  const std::int64_t blocks =
      args.batch.max_seqlen_k / args.block_size + (args.batch.max_seqlen_k % args.block_size > 0);
  check_output(backend, "scores", args.scores, accumulator_dtype(args.q.dtype),
               {args.q.shape[0], args.q.shape[1], blocks}, "[Tq, H, ceil(max_seqlen_k / B)]");
}

void check_select(const Backend& backend, const SelectArgs& args) {
  check_gate(backend, args.q, args.representatives, args.batch, args.page_table);
  require(args.selection.kind == SelectionKind::kList, "selection.kind", "not kList", "kList: the others hold no list",
          "plan_selection() of kind moba gives one.");
  check_list(backend, args.selection, args.q.shape[0], args.q.shape[1], args.representatives.shape[1]);
  check_output(backend, "selection.blocks", args.selection.blocks, DType::kInt32, {args.q.shape[0], -1, -1},
               "[Tq, selection heads, budget]");
  const ChoiceRule& rule = args.rule;
  require(rule.sink_blocks >= 0, "sink_blocks", std::to_string(rule.sink_blocks), "at least 0", "0 means none.");
  const std::int64_t most_past = most_past_blocks(args.batch.max_seqlen_k, args.selection.block_size);
  const std::int64_t budget = args.selection.budget(), previous = rule.force_previous ? 1 : 0;
  require(
      budget >= most_past || rule.sink_blocks <= budget - previous, "the budget (axis 2 of selection.blocks)",
      std::to_string(budget),
      "at least the number of forced blocks, " + std::to_string(rule.sink_blocks) + " + " + std::to_string(previous),
      "plan_selection() gives the shape.");
  static_cast<void>(name_of(rule.share_score));  // throws where it is no value of the enumeration
  check_scale(rule.softmax_scale);
  if (args.page_table.present()) check_page_divides(args.page_table, args.selection);
}

void check_invert(const Backend& backend, const InvertArgs& args) {
  require(args.selection.kind == SelectionKind::kList, "selection.kind", "not kList", "kList: the others hold no list",
          "plan_selection() of kind moba gives one.");
  require(args.rows >= 0, "rows", std::to_string(args.rows), "at least 0", "Pass the number of packed queries.");
  require(args.total_keys >= 0 && args.total_keys <= std::numeric_limits<std::int64_t>::max() / 2, "total_keys",
          std::to_string(args.total_keys), "at least 0 and below 2^62", "Pass the number of packed keys.");
  check_batch(backend, args.batch, args.rows, args.total_keys);
  check_tensor(backend, "selection.blocks", args.selection.blocks, DType::kInt32, {args.rows, -1, -1},
               "[Tq, selection heads, budget]");
  const std::int64_t heads = args.selection.selection_heads();
  check_list(backend, args.selection, args.rows, heads, heads);
  require(args.rows <= std::numeric_limits<std::int32_t>::max(), "rows", std::to_string(args.rows), "below 2^31",
          "Split the batch: entries hold rows as int32.");
  const std::int64_t block_count = block_rows(args.total_keys, args.batch.sequences(), args.selection.block_size);
  check_output(backend, "inverse.offsets", args.inverse.offsets, DType::kInt64, {heads * block_count + 1},
               "[selection heads * block rows + 1]");
  check_output(backend, "inverse.entries", args.inverse.entries, DType::kInt32,
               {args.rows * heads * args.selection.budget(), 2}, "[rows * selection heads * budget, 2]");
}

namespace {

template <class Args>
void check_attend_inputs(const Backend& backend, const Args& args) {
  check_queries_and_keys(backend, args.q, args.k);
  check_tensor(backend, "v", args.v, args.q.dtype, {args.k.shape[0], args.k.shape[1], -1}, "[Tk, HK, Dv]");
  check_dim("v", "value dim (last axis)", args.v.shape[2]);
  check_batch(backend, args.batch, args.q.shape[0], args.k.shape[0]);
  check_selection(backend, args.selection, args.q.shape[0], args.q.shape[1], args.k.shape[1]);
}

/// The page table of a call whose other inputs were checked.
void check_pages(const Backend& backend, const AttendArgs& args) {
  if (!args.page_table.present()) return;
  check_page_table(backend, args.page_table, args.batch.sequences());
  check_page_divides(args.page_table, args.selection);
  require(args.k.shape[0] % args.page_table.page_size == 0, "the number of rows of k", std::to_string(args.k.shape[0]),
          "a multiple of page_table.page_size, " + std::to_string(args.page_table.page_size),
          "k and v are the whole pool: [pages * page_size, HK, D].");
}

}  // namespace

void check_attend(const Backend& backend, const AttendArgs& args) {
  check_attend_inputs(backend, args);
  check_scale(args.softmax_scale);
  check_partial(backend, "out", "lse", args.result, args.q.dtype, args.q.shape[0], args.q.shape[1], args.v.shape[2]);
  check_pages(backend, args);
}

void check_attended(const AttendArgs& args) {
  check_attend_inputs(reference_backend(), args);
  check_pages(reference_backend(), args);
}

void check_attend_backward(const Backend& backend, const AttendBackwardArgs& args) {
  check_attend_inputs(backend, args);
  check_scale(args.softmax_scale);
  const DType dtype = args.q.dtype;
  const std::int64_t rows = args.q.shape[0], heads = args.q.shape[1], dim = args.q.shape[2];
  const std::int64_t keys = args.k.shape[0], kv_heads = args.k.shape[1], value_dim = args.v.shape[2];
  check_tensor(backend, "out", args.out, dtype, {rows, heads, value_dim}, "[Tq, H, Dv]");
  check_tensor(backend, "lse", args.lse, accumulator_dtype(dtype), {heads, rows}, "[H, Tq]");
  check_tensor(backend, "dout", args.dout, dtype, {rows, heads, value_dim}, "[Tq, H, Dv]");
  if (args.dlse.present()) {
    check_tensor(backend, "dlse", args.dlse, accumulator_dtype(dtype), {heads, rows}, "[H, Tq]");
  }
  check_output(backend, "dq", args.dq, dtype, {rows, heads, dim}, "[Tq, H, D]");
  check_output(backend, "dk", args.dk, dtype, {keys, kv_heads, dim}, "[Tk, HK, D]");
  check_output(backend, "dv", args.dv, dtype, {keys, kv_heads, value_dim}, "[Tk, HK, Dv]");
}

void check_merge(const Backend& backend, const MergeArgs& args) {
  const TensorView& out = args.result.out;
  check_rank("result.out", out, 3, "[Tq, H, Dv]");
  check_float(backend, "result.out", out.dtype);
  check_partial(backend, "result.out", "result.lse", args.result, out.dtype, out.shape[0], out.shape[1], out.shape[2]);
  const DType lse_dtype = args.result.lse.dtype;
  for (std::size_t i = 0; i < args.parts.size(); ++i) {
    const Partial& part = args.parts[i];
    const std::string name = "parts[" + std::to_string(i) + "]";
    require(part.out.dtype == out.dtype || part.out.dtype == lse_dtype, "the dtype of " + name + ".out",
            name_of(part.out.dtype),
            std::string("that of the result, ") + name_of(out.dtype) + ", or " + name_of(lse_dtype), "Convert it.");
    check_tensor(backend, (name + ".out").c_str(), part.out, part.out.dtype, {out.shape[0], out.shape[1], out.shape[2]},
                 "[Tq, H, Dv]");
    check_tensor(backend, (name + ".lse").c_str(), part.lse, lse_dtype, {out.shape[1], out.shape[0]}, "[H, Tq]");
  }
}

}  // namespace moba
