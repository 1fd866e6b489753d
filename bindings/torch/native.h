// The native CUDA kernels: a library of its own, loaded when the first tensor on a GPU that they are made for arrives.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>

#include "moba/backend.h"

namespace moba::torch_ops {

/// Null where the library is not there; `native_library_problem` says why.
const Backend* native_backend();

/// Why libmoba_cuda.so is not in use, with the remedy; none where it is.
std::optional<std::string> native_library_problem();

/// Why the native kernels are not for this device: it is no Hopper GPU, or the library is missing. None where they are.
std::optional<std::string> native_device_problem(int device);

/// What of a list problem the native kernels do not do, none where they do all. `value_dim` 0: the choice alone.
struct NativeProblem {
  at::ScalarType dtype;
  std::int64_t head_dim = 0, value_dim = 0, block_size = 0, budget = 0;
  // The options of the choice: a shared one scored by sums of products, and means in the dtype of the keys.
  bool sums_logits = true, rounded_means = true;
};
std::optional<std::string> native_limit(const NativeProblem& problem);

}  // namespace moba::torch_ops
