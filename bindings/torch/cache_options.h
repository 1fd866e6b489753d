// The flat arguments of a cache's methods as AttentionOptions.
#pragma once

#include <string>

#include "moba/options.h"

namespace moba::torch_ops {

inline AttentionOptions options_of(const std::string& kind, std::int64_t block_size, std::int64_t top_k,
                                   std::int64_t window, std::int64_t sink, double softmax_scale, bool compat_topk1_full,
                                   bool force_previous, std::int64_t sink_blocks, const std::string& share,
                                   const std::string& share_score, const std::string& representative_dtype) {
  AttentionOptions options;
  options.force_previous = force_previous;
  options.sink_blocks = sink_blocks;
  options.share = share_from_name(share);
  options.share_score = share_score_from_name(share_score);
  options.representative_dtype = representative_dtype_from_name(representative_dtype);
  options.kind = kind_from_name(kind);
  options.block_size = block_size;
  options.top_k = top_k;
  options.window = window;
  options.sink = sink;
  options.softmax_scale = softmax_scale;
  options.compat_topk1_full = compat_topk1_full;
  return options;
}

/// What a cache is made for; block_size 0: no representatives.
inline AttentionOptions options_of_cache(std::int64_t block_size, const std::string& representative_dtype) {
  AttentionOptions options;
  options.kind = block_size == 0 ? Kind::kFull : Kind::kMoba;
  options.block_size = block_size;
  options.representative_dtype = representative_dtype_from_name(representative_dtype);
  return options;
}

}  // namespace moba::torch_ops
