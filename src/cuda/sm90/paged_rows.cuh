// Where the tokens of one sequence of a paged cache lie, and how many they are, as the kernels read it.
#pragma once

#include <cstdint>

#include "cuda/decode.h"
#include "moba/context.h"

namespace moba::cuda {

struct PagedRows {
  const std::int32_t* table;
  std::int32_t* error_word;
  std::int32_t length, page_size, page_shift, pages;

  __device__ __forceinline__ PagedRows(const PagedSequences& batch, int row)
      : error_word(batch.error_word), page_size(batch.page_size), page_shift(batch.page_shift), pages(batch.pages) {
    const std::int64_t sequence = batch.sequence[row];
    table = batch.tables + sequence * batch.table_stride;
    const std::int64_t tokens = batch.lengths[sequence * batch.length_stride];
    length = static_cast<std::int32_t>(tokens < 0 ? 0 : tokens > batch.capacity ? batch.capacity : tokens);
    if (tokens != length && error_word != nullptr) atomicOr(error_word, kSeqlenAboveMaximum);
  }

  /// The page with that number in the table.
  __device__ __forceinline__ std::int32_t page(std::int32_t index) const {
    const std::int32_t page = table[index];
    if (static_cast<std::uint32_t>(page) < static_cast<std::uint32_t>(pages)) return page;
    if (error_word != nullptr) atomicOr(error_word, kPageOutOfRange);
    return page < 0 ? 0 : pages - 1;
  }

  __device__ __forceinline__ std::int32_t page_index(std::int32_t position) const {
    return page_shift >= 0 ? position >> page_shift : position / page_size;
  }

  /// The row of k and v that holds the token at a position below the length.
  __device__ __forceinline__ std::int32_t row(std::int32_t position) const {
    const std::int32_t index = page_index(position);
    return page(index) * page_size + (position - index * page_size);
  }
};

}  // namespace moba::cuda
