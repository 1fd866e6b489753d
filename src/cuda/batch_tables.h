// How kernels learn where the sequences of a packed batch lie: from tables in device memory, or, where sequences are
// few, from the offsets themselves, without a launch before.
#pragma once

#include <cstdint>
#include <optional>

#include "cuda/inverse.h"
#include "cuda/launch.h"

namespace moba::cuda {

class BatchTables {
 public:
  /// As of BlockMap.
  BatchTables(Context& context, const PackedBatch& batch, std::int64_t total_q, std::int64_t total_k,
              std::int64_t block_size);

  const BatchSequences& sequences() const { return sequences_; }

 private:
  std::optional<BlockMap> map_;
  BatchSequences sequences_;
};

}  // namespace moba::cuda
