// The keys, values and block representatives of one layer for decoding, over memory that the caller owns.
#pragma once

#include <cstdint>

#include "moba/backend.h"
#include "moba/options.h"
#include "moba/reads.h"

namespace moba {

/// Describes the cache of one attention layer and one sequence, `capacity` tokens in one piece; owns nothing. Many
/// sequences in pages of a common pool: PagedKvCache (paged_kv_cache.h).
///
/// Representatives are kept for *closed* blocks: those whose `block_size` tokens have all arrived. The open block is a
/// float32 running sum of its keys; when it closes, the mean is rounded to their dtype exactly as `pool` does, so
/// that a representative has the same bits from one shot, from any chunking, and token by token.
///
/// `length` is the number of tokens held; it changes only through append and truncate.
struct KvCache {
  TensorView k;                 // [capacity, HK, D]
  TensorView v;                 // [capacity, HK, Dv]
  TensorView representatives;   // [block_rows(capacity, 1, B), HK, D], dtype of k, or float32 (float64 beside float64)
  TensorView running_sum;       // float32 [HK, D]
  std::int64_t block_size = 0;  // B; 0 for a layer without block choice (then the two above are absent)
  std::int64_t length = 0;      // tokens held

  std::int64_t capacity() const { return k.shape[0]; }
  std::int64_t closed_blocks() const { return block_size > 0 ? length / block_size : 0; }
};

/// Appends tokens: writes their keys and values, extends the running sum, closes blocks as they fill.
/// k_new [n, HK, D], v_new [n, HK, Dv]. Errors: kInvalidArgument when the capacity is exceeded (nothing is written).
void append(Context& context, const Backend& backend, KvCache& cache, ConstTensorView k_new, ConstTensorView v_new);

/// Attention of the last n tokens of the cache, one row each: q [n, H, D], out [n, H, Dv], lse [H, n]. The n keys are
/// already appended. Equal to the same rows of a one-shot call over the whole sequence; n == 1 is a decode step.
/// `reads` is filled where it is given.
void attend_cached(Context& context, const Backend& backend, const KvCache& cache, const AttentionOptions& options,
                   ConstTensorView q, Partial result, ReadCount* reads = nullptr);

/// Forgets the tokens from `length` on, in O(block_size): the open block's sum is rebuilt from its keys.
/// Errors: kInvalidArgument when length is negative or above cache.length.
void truncate(Context& context, const Backend& backend, KvCache& cache, std::int64_t length);

}  // namespace moba
