// Representatives of a cache that grows token by token, however its tokens are stored. What a block's representative is
// never depends on how its tokens arrived: see block_mean.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "block_mean.h"
#include "moba/tensor.h"

namespace moba {

template <class T>
T* cached_row(const TensorView& tensor, std::int64_t row, std::int64_t head) {
  return tensor.as<T>() + row * tensor.stride[0] + head * tensor.stride[1];
}

/// Adds the keys at positions [begin, end) of a sequence to the running sum of one head, closing blocks as they fill.
/// row_of(position) is the row of k that holds a token, block_row(block) the row of a block's representative.
template <class T, class RowOf, class BlockRow>
void extend_blocks(const TensorView& k, const TensorView& representatives, Accumulator<T>* sum, std::int64_t block_size,
                   std::int64_t head, std::int64_t begin, std::int64_t end, RowOf&& row_of, BlockRow&& block_row) {
  const std::int64_t dim = k.shape[2];
  for (std::int64_t t = begin; t < end; ++t) {
    if (t % block_size == 0) std::fill_n(sum, dim, Accumulator<T>{0});
    add_key(sum, cached_row<const T>(k, row_of(t), head), dim);
    if ((t + 1) % block_size == 0) {
      const std::int64_t row = block_row(t / block_size);
      if (representatives.dtype == k.dtype) {
        write_mean(cached_row<T>(representatives, row, head), sum, block_size, dim);
      } else {
        write_mean(cached_row<Accumulator<T>>(representatives, row, head), sum, block_size, dim);
      }
    }
  }
}

}  // namespace moba
