// Rows of a matrix by number.
#pragma once

#include <ATen/ATen.h>

namespace moba::torch_ops::portable {

/// rows [N, W], index int64 [M], all in [0, N) -> [M, W]. Fast on CUDA where the index is spaced.
at::Tensor gather_rows(const at::Tensor& rows, const at::Tensor& index);

/// The same numbers, at every other place in memory.
///
/// ATen serves a gather of whole rows by a dense index with one thread block a row: 0.6 ns each on an H100 however
/// short the row is, a tenth of the memory's speed for rows of 128 bytes. By a spaced index it gives each element a
/// thread, and `gather_rows` makes elements of 16 bytes.
at::Tensor spaced(const at::Tensor& index);

}  // namespace moba::torch_ops::portable
