// The gate on the device, and merge: verbs of the Backend. Arguments are as there; what the Hopper kernels do
// not take is an Error (kUnsupported) that names the way out.
#pragma once

#include <cstdint>

#include "moba/backend.h"

namespace moba::cuda {

/// Blocks that take slots of the list whatever their scores: the first `sink_blocks` of the sequence and, where
/// `force_previous`, the block before the row's own, as far as they are past. Free slots go to the best of the rest.
struct ForcedBlocks {
  bool force_previous = false;
  std::int64_t sink_blocks = 0;
};

void pool(Context& context, const PoolArgs& args);
void select(Context& context, const SelectArgs& args, const ForcedBlocks& forced = {});
void invert(Context& context, const InvertArgs& args);
void score(Context& context, const ScoreArgs& args);
void merge(Context& context, const MergeArgs& args);

}  // namespace moba::cuda
