// Where sequences, rows and blocks of a packed batch lie, as tensors: computed on the device, never read by the host.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "moba_torch/attention.h"
#include "portable/varlen.h"

namespace moba::torch_ops::portable {

/// Offsets made safe: int64, in [0, total], non-decreasing; lengths cut to the maxima.
struct Sequences {
  at::Tensor q_begin, q_length, k_begin, k_length;  // [sequences]
  at::Tensor cu_q, cu_k;                            // int32 [sequences + 1]
  std::int64_t count = 0;
  std::int64_t total_k = 0;

  Sequences(const SequenceBatch& batch, std::int64_t total_q, std::int64_t total_k);

  /// The position of each sequence's first query: negative where there are more queries than keys.
  at::Tensor shift() const { return k_length - q_length; }
};

/// For each packed query row its sequence, its position among the keys, and whether it sees any key.
struct Rows {
  at::Tensor sequence;  // int64 [Tq]
  at::Tensor position;  // int64 [Tq], 0 where not valid
  at::Tensor valid;     // bool [Tq]

  Rows(const Sequences& sequences, std::int64_t total_q);
};

/// The key blocks of the whole batch, one for each of the R = block_rows(...) rows (moba/selection.h); a row that no
/// block owns is empty.
struct Blocks {
  at::Tensor first_row;   // int64 [sequences]: the row of block 0
  at::Tensor sequence;    // int64 [R]
  at::Tensor begin, end;  // int64 [R]: its keys
  std::int64_t count = 0;
  std::int64_t size = 0;

  Blocks(const Sequences& sequences, std::int64_t total_k, std::int64_t block_size);

  /// The own-block part of attention: block i of a sequence with the queries at its positions. Rows before the first
  /// key, or of no sequence, fall into segments without keys.
  Segments own_segments(const Sequences& sequences, const SequenceBatch& batch) const;
};

/// Whether queries and keys are the same tokens: one tensor of offsets, one bound.
bool same_tokens(const SequenceBatch& batch);

/// [0, count) like `like`, int64.
at::Tensor range(std::int64_t count, const at::Tensor& like);

/// For each value the last index whose `starts` entry is not above it; `starts` is non-decreasing.
at::Tensor last_not_above(const at::Tensor& starts, const at::Tensor& values);

}  // namespace moba::torch_ops::portable
