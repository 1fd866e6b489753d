// attend_backward of the CUDA backend.
#pragma once

#include "moba/backend.h"

namespace moba::cuda {

/// dq, dk, dv for a list of blocks: bfloat16 or float16, D == Dv == 64 or 128, budget below 64. All work is on the
/// context's stream, nothing is read back, and the results have the same bits in every run. Scratch stays within
/// Context::workspace_limit and 4 bytes for each element of q, which dense flash attention holds for its dq as well: kv
/// heads, then rows, are taken in chunks. Errors: kUnsupported names what these kernels do not take; kWorkspace where
/// one chunk of 128 rows of one kv head does not fit.
void attend_backward(Context& context, const AttendBackwardArgs& args);

}  // namespace moba::cuda
