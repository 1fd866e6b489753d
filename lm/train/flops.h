// Arithmetic of training, for TFLOP/s and the time that is left.
#pragma once

#include <cstdint>

#include "lm/config/train_config.h"

namespace moba::lm {

/// Multiplications and additions of one training step (forward and backward; recomputation is not counted): 6 for each
/// parameter and token, and 12·heads·head_dim for each (query, key) pair that the plan attends, and for MoBA
/// 2·heads·head_dim for each (query, representative) pair of its gate. Full-length sequences are assumed.
double step_flops(const ModelConfig& model, const PhaseConfig& phase);

}  // namespace moba::lm
