// Flags for the options of MoBA's choice beside block size and top-k.
#pragma once

#include <cstdint>
#include <string>

#include <CLI/CLI.hpp>

#include "moba/options.h"

namespace moba::app {

/// --force-previous, --sink-blocks, --share, --share-score, --representative-dtype; the defaults are MoBA's.
struct GateFlags {
  bool force_previous = false;
  std::int64_t sink_blocks = 0;
  std::string share = "head", share_score = "sum_logit", representative_dtype = "input";

  void declare(CLI::App& command, const char* group);
  /// Whether any differs from the default.
  bool any() const;
  /// Sets the fields of the options. UsageError where the forced blocks do not fit options.top_k.
  void apply(AttentionOptions& options) const;
  /// The flags that differ from the default, each with a blank before it.
  std::string command_line() const;
};

}  // namespace moba::app
