// The instances of every kernel: two element types by two head dims, chosen here and nowhere else.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <string>

#include "moba/error.h"
#include "moba/tensor.h"

namespace moba::cuda {

/// Calls body.template operator()<T, kDim>() with the element type and head dim; Error (kUnsupported) for others.
template <class Body>
void dispatch_instance(DType dtype, std::int64_t head_dim, Body&& body) {
  if (dtype == DType::kBFloat16 && head_dim == 64) return body.template operator()<__nv_bfloat16, 64>();
  if (dtype == DType::kBFloat16 && head_dim == 128) return body.template operator()<__nv_bfloat16, 128>();
  if (dtype == DType::kFloat16 && head_dim == 64) return body.template operator()<__half, 64>();
  if (dtype == DType::kFloat16 && head_dim == 128) return body.template operator()<__half, 128>();
  throw Error(ErrorCode::kUnsupported,
              "q is " + std::string(name_of(dtype)) + " with head dim " + std::to_string(head_dim) +
                  "; the Hopper kernels take bfloat16 and float16 with head dim 64 or 128. Convert the tensors, or use "
                  "the portable backend.");
}

}  // namespace moba::cuda
