// Options of one attention call: the method and its numbers. Defaults are the published ones.
#pragma once

#include <cstdint>
#include <string_view>

namespace moba {

enum class Kind : std::uint8_t { kFull, kWindow, kMoba };

/// "full", "window", "moba".
const char* name_of(Kind kind);
/// The kind of that name; Error (kInvalidArgument) lists the known ones.
Kind kind_from_name(std::string_view name);

struct AttentionOptions {
  Kind kind = Kind::kMoba;

  // moba
  std::int64_t block_size = 512;  // B >= 1, in tokens
  std::int64_t top_k = 3;         // k >= 1 blocks a row attends, **its own counted**
  /// At top_k == 1 the public MoBA kernels fall back to full causal attention; the paper means the own block only, and
  /// so do we. This flag gives the peers' behaviour.
  bool compat_topk1_full = false;

  // window: the last `window` keys, the row's own among them, and the first `sink` keys
  std::int64_t window = 0;
  std::int64_t sink = 0;

  /// Factor on q·k before the softmax; 0 means 1/sqrt(head_dim). The choice of blocks does not use it.
  double softmax_scale = 0.0;
};

}  // namespace moba
