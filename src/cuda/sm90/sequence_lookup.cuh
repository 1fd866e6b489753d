// The sequence of a packed row, by bisection, remembered between neighbouring rows.
#pragma once

#include <cstdint>

#include "cuda/inverse.h"

namespace moba::cuda {

/// The last of `count` indices whose first(index), which never falls, is at or before `value`; -1 where none is.
template <class Index, class Value, class First>
__device__ __forceinline__ Index last_at_or_before(Index count, Value value, First&& first) {
  Index low = 0, high = count;
  while (low < high) {
    const Index middle = low + (high - low) / 2;
    if (first(middle) <= value) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low - 1;
}

/// The last sequence whose queries begin at or before the row (empty ones share their begin with the next that is not),
/// or -1 where none does or the row lies behind its end.
__device__ __forceinline__ std::int64_t sequence_of_row(const SequenceSpan* sequences, std::int64_t count,
                                                        std::int64_t row) {
  const std::int64_t s = last_at_or_before(count, row, [&](std::int64_t i) { return sequences[i].q_begin; });
  return s >= 0 && row < sequences[s].q_begin + sequences[s].q_length ? s : -1;
}

/// Own blocks and first block rows of rows asked for in ascending order.
struct RowLookup {
  const SequenceSpan* sequences;
  std::int64_t count;
  std::int64_t block_size;
  std::int64_t begin = 0, end = 0;  // the rows that the values below are of
  std::int64_t shift = 0;           // position - row
  std::int64_t first_block_row = 0;

  /// The row's own block, or 0 (no block is past) for rows that see no key.
  __device__ __forceinline__ std::uint32_t own_block(std::int64_t row) {
    if (row < begin || row >= end) find(row);
    const std::int64_t position = row + shift;
    if (position < 0) return 0;
    // Positions are below 2^31, and a 32-bit division is several times as fast as one of 64 bits.
    return block_size > position ? 0u : static_cast<std::uint32_t>(position) / static_cast<std::uint32_t>(block_size);
  }

 private:
  __device__ void find(std::int64_t row) {
    const std::int64_t s = sequence_of_row(sequences, count, row);
    if (s < 0) {
      begin = row;
      end = row + 1;
      shift = -row - 1;
      first_block_row = 0;
      return;
    }
    const SequenceSpan sequence = sequences[s];
    begin = sequence.q_begin;
    end = begin + sequence.q_length;
    shift = sequence.k_length - sequence.q_length - begin;
    first_block_row = sequence.k_begin / block_size + s;
  }
};

}  // namespace moba::cuda
