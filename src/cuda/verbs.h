// The verbs of this backend; see moba/backend.h.
#pragma once

#include <cuda_runtime_api.h>

#include "moba/backend.h"

namespace moba::cuda {

/// Throws Error (kUnsupported) where the Hopper kernels cannot attend by this selection: it must be a list of one row
/// a tile, D == Dv in {64, 128}, B >= 16, budget <= 63. `verb` begins the message.
void check_native(const char* verb, const ConstTensorView& q, const ConstTensorView& v, const Selection& selection);

void attend(Context& context, const AttendArgs& args);

inline cudaStream_t stream_of(const Context& context) {
  return static_cast<cudaStream_t>(context.stream());
}

}  // namespace moba::cuda
