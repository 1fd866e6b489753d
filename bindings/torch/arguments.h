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
