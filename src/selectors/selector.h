// A selector is one method's policy: which keys each row attends. One constant of this type a method, in a file of its
// own; `selectors.cpp` lists them.
#pragma once

#include <cstdint>
#include <span>

#include "moba/backend.h"
#include "moba/options.h"

namespace moba {

/// The sizes a plan may depend on; all are known to the host.
struct Extents {
  std::int64_t total_q = 0, heads = 0, kv_heads = 0, max_seqlen_k = 0;
};

struct Selector {
  Kind kind;
  const char* name;

  /// The Selection before its list has memory. Throws Error (kInvalidArgument) where an option of this method is out of
  /// range.
  Selection (*plan)(const AttentionOptions& options, const Extents& extents);

  /// Fills selection.blocks from q [Tq, H, D] and the representatives [R, HK, D]; null for methods without a list.
  void (*choose)(Context& context, const Backend& backend, const AttentionOptions& options, const SelectArgs& args);
};

/// All methods, in the order of `Kind`.
std::span<const Selector* const> selectors();
/// The selector of a kind.
const Selector& selector_of(Kind kind);

extern const Selector kFullSelector;    // full.cpp
extern const Selector kWindowSelector;  // window.cpp
extern const Selector kMobaSelector;    // moba.cpp

}  // namespace moba
