#include "portable/segments.h"

#include <algorithm>

#include "moba/selection.h"

namespace moba::torch_ops::portable {
namespace {

// int64 [sequences + 1], in [0, total], non-decreasing.
at::Tensor safe_offsets(const at::Tensor& cu, std::int64_t total) {
  return std::get<0>(at::cummax(cu.to(at::kLong).clamp(0, total), 0));
}

bool same_memory(const at::Tensor& a, const at::Tensor& b) {
  return a.const_data_ptr() == b.const_data_ptr() && a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         a.strides() == b.strides();
}

// [b0, e0, b1, e1, ...]: the ranges and the gaps between them.
at::Tensor with_gaps(const at::Tensor& begin, const at::Tensor& end) {
  return at::stack({begin, end}, 1).flatten().to(at::kInt);
}

}  // namespace

bool same_tokens(const SequenceBatch& batch) {
  return batch.max_seqlen_q == batch.max_seqlen_k && same_memory(batch.cu_seqlens_q, batch.cu_seqlens_k);
}

at::Tensor range(std::int64_t count, const at::Tensor& like) {
  return at::arange(count, like.options().dtype(at::kLong));
}

at::Tensor last_not_above(const at::Tensor& starts, const at::Tensor& values) {
  return at::searchsorted(starts, values, /*out_int32=*/false, /*right=*/true) - 1;
}

Sequences::Sequences(const SequenceBatch& batch, std::int64_t total_q, std::int64_t total_k_in)
    : count(batch.cu_seqlens_k.size(0) - 1), total_k(total_k_in) {
  const at::Tensor q = safe_offsets(batch.cu_seqlens_q, total_q), k = safe_offsets(batch.cu_seqlens_k, total_k);
  q_begin = q.slice(0, 0, -1);
  k_begin = k.slice(0, 0, -1);
  q_length = (q.slice(0, 1) - q_begin).clamp_max(batch.max_seqlen_q);
  k_length = (k.slice(0, 1) - k_begin).clamp_max(batch.max_seqlen_k);
  cu_q = q.to(at::kInt);
  cu_k = k.to(at::kInt);
}

Rows::Rows(const Sequences& sequences, std::int64_t total_q) {
  const at::Tensor row = range(total_q, sequences.q_begin);
  // Empty sequences share their begin with the next one; the last of them is the one that may hold the row.
  sequence = last_not_above(sequences.q_begin, row).clamp_min_(0);
  const at::Tensor offset = row - sequences.q_begin.index_select(0, sequence);
  position = offset + sequences.shift().index_select(0, sequence);
  valid = (offset >= 0).logical_and_(offset < sequences.q_length.index_select(0, sequence)).logical_and_(position >= 0);
  position = position.masked_fill(valid.logical_not(), 0);
}

Blocks::Blocks(const Sequences& sequences, std::int64_t total_k, std::int64_t block_size)
    : count(block_rows(total_k, sequences.count, block_size)), size(block_size) {
  const at::Tensor row = range(count, sequences.k_begin);
  first_row = at::floor_divide(sequences.k_begin, block_size) + range(sequences.count, sequences.k_begin);
  sequence = last_not_above(first_row, row).clamp_min_(0);
  const at::Tensor index = row - first_row.index_select(0, sequence);  // negative before the first sequence
  const at::Tensor key_begin = sequences.k_begin.index_select(0, sequence);
  const at::Tensor length = sequences.k_length.index_select(0, sequence);
  begin = key_begin + at::minimum((index * block_size).clamp_min(0), length);
  end = key_begin + at::minimum(((index + 1) * block_size).clamp_min(0), length);
}

Segments Blocks::own_segments(const Sequences& sequences, const SequenceBatch& batch) const {
  Segments own;
  own.max_q = std::min(size, batch.max_seqlen_q);
  own.max_k = std::min(size, batch.max_seqlen_k);
  own.causal = true;
  if (same_tokens(batch)) {
    // Queries and keys are the same tokens: no row is without a block, and half as many segments do.
    own.cu_q = own.cu_k = at::cat({begin, end.slice(0, -1)}).to(at::kInt);
    return own;
  }
  // Position p of sequence s is the row q_begin + p - shift.
  const at::Tensor q_begin = sequences.q_begin.index_select(0, sequence);
  const at::Tensor q_length = sequences.q_length.index_select(0, sequence);
  const at::Tensor key_begin = sequences.k_begin.index_select(0, sequence);
  const at::Tensor shift = sequences.shift().index_select(0, sequence);
  const auto row_at = [&](const at::Tensor& key) {
    return q_begin + at::minimum((key - key_begin - shift).clamp_min(0), q_length);
  };
  // A block without keys has no rows either: both its ends are the same row.
  own.cu_q = with_gaps(row_at(begin), row_at(end));
  own.cu_k = with_gaps(begin, end);
  return own;
}

}  // namespace moba::torch_ops::portable
