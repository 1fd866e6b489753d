// The cache of many sequences of one layer, in pages of a common pool, over memory that the caller owns.
#pragma once

#include <cstdint>
#include <span>

#include "moba/backend.h"
#include "moba/options.h"
#include "moba/page_pool.h"
#include "moba/page_table.h"
#include "moba/reads.h"

namespace moba {

/// Describes a layer's pool of pages, and which pages each sequence has; owns nothing. Position p of a sequence lies in
/// the page `page_tables[sequence, p / page_size]` (see PageTable), so sequences of any length share the pool without
/// gaps, and sequences with a common beginning share its pages.
///
/// `page_size` divides B. A block is whole pages, and the page that holds its last token also has its representative:
/// the two are shared, and given back, together. A page that is not full may be shared too; the first sequence that
/// appends to it gets a copy of its own ("copy on write"). A full page is never written again while it is held.
///
/// The pool's counters, the tables, the lengths and the sums must be used with this cache alone, and changed by the
/// functions below alone. At first all lengths are 0; the rest needs no values. A sequence whose length is 0 is free.
///
/// For a backend of another device, k, v, representatives and sums are in its memory. Tables and lengths are where the
/// host keeps count of pages, and have copies on the device, which these functions keep up to date without waiting.
/// A decode step may be captured in a graph: capture `write` and `attend_cached`, and call `grow` before each replay.
struct PagedKvCache {
  TensorView k;                 // [pages * page_size, HK, D]
  TensorView v;                 // [pages * page_size, HK, Dv]
  TensorView representatives;   // [pages, HK, D], dtype of k, or float32; used where a page ends a block
  TensorView running_sums;      // float32 (float64 beside float64) [sequences, HK, D]: of each open block
  TensorView page_tables;       // int32 [sequences, most pages of a sequence]
  TensorView lengths;           // int64 [sequences]: tokens held
  TensorView device_tables;     // as page_tables; absent where the backend's memory is the host's
  TensorView device_lengths;    // as lengths, likewise; 0 at first
  PagePool* pool = nullptr;     // counters of these pages
  std::int64_t page_size = 0;   // tokens; >= 1
  std::int64_t block_size = 0;  // B; 0 for a layer without block choice (then representatives and sums are absent)

  std::int64_t sequences() const { return page_tables.shape[0]; }
  /// The most tokens of one sequence.
  std::int64_t capacity() const { return page_tables.shape[1] * page_size; }
  std::int64_t length(std::int64_t sequence) const { return lengths.as<std::int64_t>()[sequence * lengths.stride[0]]; }
};

/// A sequence of a cache, and how many of its tokens a call is about.
struct SequenceTokens {
  std::int64_t sequence = 0;
  std::int64_t count = 0;
};

/// Appends tokens to several sequences, each named once: k_new [sum of counts, HK, D], v_new [sum of counts, HK, Dv],
/// in the order of `parts`. Results have the same bits as appending one token at a time.
/// Errors: kInvalidArgument for a sequence that would outgrow its table, kWorkspace when the pool has too few free
/// pages. Nothing is changed then.
void append(Context& context, const Backend& backend, PagedKvCache& cache, std::span<const SequenceTokens> parts,
            ConstTensorView k_new, ConstTensorView v_new);

/// The first half of `append`: takes the pages and counts the tokens, whose keys and values come with `write`. Errors
/// as of `append`, and kUnsupported while a stream is being captured. Nothing is changed then.
void grow(Context& context, const Backend& backend, PagedKvCache& cache, std::span<const SequenceTokens> parts);

/// The second half: k_new and v_new, as of `append`, are the last `count` tokens of each part. To be called once after
/// each `grow`, with the same parts. Errors: kInvalidArgument; nothing is changed then.
void write(Context& context, const Backend& backend, PagedKvCache& cache, std::span<const SequenceTokens> parts,
           ConstTensorView k_new, ConstTensorView v_new);

/// Makes `target`, a sequence of length 0, begin with the first `length` tokens of `source`: no token is copied, their
/// pages gain a holder. O(pages + B). Errors: kInvalidArgument; nothing is changed then.
void fork(Context& context, const Backend& backend, PagedKvCache& cache, std::int64_t source, std::int64_t target,
          std::int64_t length);

/// Forgets a sequence's tokens from `length` on and gives back the pages behind them, in O(pages + B): the open block's
/// sum is rebuilt from its keys. Length 0 frees the sequence.
/// Errors: kInvalidArgument when `length` is negative or above the sequence's; nothing is changed then.
void truncate(Context& context, const Backend& backend, PagedKvCache& cache, std::int64_t sequence,
              std::int64_t length);

/// Attention of the last `count` tokens of each part, whose keys are already appended: q [sum of counts, H, D], out
/// [sum of counts, H, Dv], lse [H, sum of counts]. Counts of 1 are a decode step of a batch; greater ones are chunks of
/// prompts; both may stand in one call. Every part has the bits that it has in a call of its own, and in the same call
/// over a KvCache of the same tokens. `reads` is filled where it is given, in host memory only.
/// On a CUDA device each count of 1 is part of a decode step, two launches for all of them; a greater one is copied
/// into one piece first and goes the way of packed tokens, so that its bits are theirs and a decode step's are its own.
void attend_cached(Context& context, const Backend& backend, const PagedKvCache& cache,
                   std::span<const SequenceTokens> parts, const AttentionOptions& options, ConstTensorView q,
                   Partial result, ReadCount* reads = nullptr);

}  // namespace moba
