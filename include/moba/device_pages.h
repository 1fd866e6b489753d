// What a cache in pages asks of a backend whose memory the host does not reach: to write tokens there, and to attend
// them.
#pragma once

#include <cstdint>
#include <span>

#include "moba/backend.h"

namespace moba {

struct PagedKvCache;
struct SequenceTokens;

/// Entries [first, first + count) of a sequence's page table.
struct PageRun {
  std::int64_t sequence = 0, first = 0, count = 0;
};

/// The first `tokens` tokens of a page, to be copied to another.
struct PageCopy {
  std::int32_t from = 0, to = 0;
  std::int64_t tokens = 0;
};

/// One row of attention for each of several sequences, and before it the choice where the selection is a list.
struct DecodeArgs {
  ConstTensorView q;  // [rows, H, D]: row r is the last token of sequence `sequences[r]`
  const PagedKvCache* cache = nullptr;
  std::span<const std::int64_t> sequences;  // in host memory
  Selection selection;                      // kAll, or kList with room in `blocks`
  ChoiceRule rule = {};
  double softmax_scale = 0.0;  // > 0
  Partial result;              // out [rows, H, Dv] in the dtype of q, lse [H, rows]
};

/// One sequence in one piece: what the verbs take. Offsets are int64 [2].
struct GatheredSequence {
  TensorView k;                // [length, HK, D]
  TensorView v;                // [length, HK, Dv]
  TensorView representatives;  // [block_rows(length, 1, B), HK, D], or absent
  TensorView cu_seqlens_q, cu_seqlens_k;
};

/// Stateless, as Backend. Everything happens on the context's stream and nothing is read back. Lengths and tables that
/// kernels need are read in device memory (`PagedKvCache::device_lengths`, `device_tables`) when they run: `write` and
/// `decode` may be captured in a graph and replayed while the cache grows.
class DevicePages {
 public:
  virtual ~DevicePages() = default;

  /// Brings those entries of the host's page tables, and the lengths of their sequences, to the device. Errors:
  /// kUnsupported while the stream is being captured: a graph would repeat what is true now.
  virtual void mirror(Context& context, const PagedKvCache& cache, std::span<const PageRun> runs) const = 0;

  /// Keys and values of pages. Errors as of `mirror`.
  virtual void copy_pages(Context& context, const PagedKvCache& cache, std::span<const PageCopy> copies) const = 0;

  /// The last `count` tokens of each part, with running sums and representatives.
  virtual void write(Context& context, const PagedKvCache& cache, std::span<const SequenceTokens> parts,
                     const ConstTensorView& k_new, const ConstTensorView& v_new) const = 0;

  /// The running sum of a sequence's open block anew, from its keys.
  virtual void rebuild_sums(Context& context, const PagedKvCache& cache, std::int64_t sequence) const = 0;

  virtual void decode(Context& context, const DecodeArgs& args) const = 0;

  /// Copies a sequence of that length together, whose last `rows` tokens are queries.
  virtual void gather(Context& context, const PagedKvCache& cache, std::int64_t sequence, std::int64_t rows,
                      const GatheredSequence& to) const = 0;
};

}  // namespace moba
