// The flat arguments of an operator as the structs that the backends take.
#pragma once

#include <cmath>
#include <string>
#include <string_view>

#include "checks.h"
#include "moba/selection.h"
#include "operators.h"
#include "portable/portable.h"

namespace moba::torch_ops {

/// Throws unless it is positive and finite, or 0 for the default.
inline double scale_of(double softmax_scale, const at::Tensor& q) {
  AttentionOptions options;
  options.kind = Kind::kFull;
  options.softmax_scale = softmax_scale;
  check_options(options);
  return softmax_scale == 0.0 ? 1.0 / std::sqrt(static_cast<double>(q.size(2))) : softmax_scale;
}

/// How many choices each row makes.
inline std::int64_t lists_of(Share share, const at::Tensor& q, const at::Tensor& k) {
  return share == Share::kHead ? q.size(1) : share == Share::kGroup ? k.size(1) : 1;
}

/// The arguments of `select` as options of kind moba, checked. A top_k that leaves no room for the forced blocks will
/// do where no row has more past blocks.
inline AttentionOptions gate_options(std::int64_t block_size, std::int64_t top_k, bool force_previous,
                                     std::int64_t sink_blocks, std::string_view share, std::string_view share_score,
                                     std::string_view representative_dtype, double softmax_scale,
                                     std::int64_t max_seqlen_k) {
  AttentionOptions options;
  options.block_size = block_size;
  options.top_k = top_k;
  options.force_previous = force_previous;
  options.sink_blocks = sink_blocks;
  options.share = share_from_name(share);
  options.share_score = share_score_from_name(share_score);
  options.representative_dtype = representative_dtype_from_name(representative_dtype);
  options.softmax_scale = softmax_scale;
  check_options(options, max_seqlen_k);
  return options;
}

/// Checks what `kind` uses and no more.
inline portable::TensorSelection selection_of(const at::Tensor& q, const at::Tensor& k, std::string_view kind,
                                              std::int64_t block_size, std::int64_t window, std::int64_t sink,
                                              const OptionalTensor& blocks) {
  portable::TensorSelection selection;
  if (kind == "all") return selection;
  AttentionOptions options;
  if (kind == "span") {
    options.kind = Kind::kWindow;
    options.window = window;
    options.sink = sink;
    check_options(options);
    selection.kind = SelectionKind::kSpan;
    selection.window = window;
    selection.sink = sink;
    return selection;
  }
  require(kind == "list", "kind", "'" + std::string(kind) + "'", "'all', 'span' or 'list'",
          "These are the kinds of a selection; the methods full, window and moba are names of libmoba.attention.");
  options.block_size = block_size;
  check_options(options);
  require(blocks.has_value() && blocks->defined(), "blocks", "absent", "a list of blocks for kind 'list'",
          "Make it with libmoba.select.");
  check_blocks(q, k, *blocks);
  selection.kind = SelectionKind::kList;
  selection.block_size = block_size;
  selection.blocks = *blocks;
  return selection;
}

}  // namespace moba::torch_ops
