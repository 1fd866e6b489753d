// Descriptions of tensors for the copy engine (TMA).
#pragma once

#include <cuda.h>

#include "moba/tensor.h"

namespace moba::cuda {

/// A map of a 16-bit tensor [tokens, heads, D] with coordinates (column, token, head) and boxes of 64 columns, `rows`
/// tokens and one head, swizzled by 128 bytes. Reading outside of the tensor gives zeros. `argument` names the tensor
/// in the Error where its address or a stride is not a multiple of 16 bytes, which the engine asks for. tokens >= 1.
CUtensorMap tensor_map(const char* argument, const ConstTensorView& tensor, int rows);

/// Whether address and strides are multiples of 16 bytes: what tensor_map() and 16-byte copies of rows need.
bool is_aligned(const ConstTensorView& tensor);

}  // namespace moba::cuda
