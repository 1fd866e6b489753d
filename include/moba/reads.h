// What a call of attention reads: how much of the sparsity of a choice survives when query heads share keys.
#pragma once

#include <cstdint>

#include "moba/backend.h"

namespace moba {

/// Keys and values are read once for all query heads of a key/value head, so what counts is the *union* of what its
/// heads chose. With one query row of a group of g heads that choose k blocks each, `blocks_chosen` is g * k for each
/// key/value head and `blocks_read` between k (one choice for the group, or equal choices) and g * k: their ratio is
/// the IO measure of the author of MoBA. MHA has g = 1 and keeps all of its sparsity; MQA may lose it all.
struct ReadCount {
  TensorView blocks_of_head;       // int64 [sequences, HK], or absent: distinct blocks of each key/value head
  std::int64_t blocks_read = 0;    // their sum; own blocks counted. 0 for a selection without blocks
  std::int64_t blocks_chosen = 0;  // the sum over query rows and heads: what reading without sharing takes
  std::int64_t keys_read = 0;      // the same two in keys; the own block reaches up to the row
  std::int64_t keys_chosen = 0;
  std::int64_t key_bytes = 0;             // of keys_read: k and v
  std::int64_t representative_bytes = 0;  // that the choice reads

  /// Distinct blocks read / (k * group); 1 where nothing is read.
  double shared_ratio() const {
    return blocks_chosen == 0 ? 1.0 : static_cast<double>(blocks_read) / static_cast<double>(blocks_chosen);
  }
};

/// Counts for the rows of a batch under a selection whose list is filled. `args` as of `attend`; its `result` is not
/// used. O(rows * H * budget + blocks). Host memory only. Throws Error where `attend` would for q, k,
/// v, batch, selection and page table.
void count_reads(Context& context, const AttendArgs& args, ReadCount& count);

}  // namespace moba
