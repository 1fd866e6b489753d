// The cache of many sequences of one layer in pages, in tensors that it owns. On the CPU, or
// on a Hopper GPU by the native kernels.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <span>
#include <tuple>

#include "moba/options.h"
#include "moba/paged_kv_cache.h"

namespace moba::torch_ops {

/// moba::PagedKvCache with its memory. No gradients. Throws moba::Error (Python sees ValueError, and OutOfMemoryError
/// where the pool has too few free pages); nothing is changed then.
class PagedKvCache {
 public:
  struct Sizes {
    std::int64_t pages, page_size;
    std::int64_t sequences;
    std::int64_t capacity;  // the most tokens of one sequence
    std::int64_t kv_heads, head_dim, value_dim;
  };
  /// `options` of kind moba make it keep representatives for options.block_size, in options.representative_dtype.
  PagedKvCache(const Sizes& sizes, const AttentionOptions& options, at::TensorOptions tensor_options);
  PagedKvCache(const PagedKvCache&) = delete;
  PagedKvCache& operator=(const PagedKvCache&) = delete;

  /// k [sum of counts, HK, D], v [sum of counts, HK, Dv]: new tokens of several sequences, in the order of `parts`.
  void append(std::span<const SequenceTokens> parts, const at::Tensor& k, const at::Tensor& v);

  /// The halves of append(): the pages and lengths, and the tokens. On a GPU a step of write() and attend() may be
  /// captured in a graph, with grow() before each replay.
  void grow(std::span<const SequenceTokens> parts);
  void write(std::span<const SequenceTokens> parts, const at::Tensor& k, const at::Tensor& v);

  /// Attention of the last tokens of several sequences: q [sum of counts, H, D] -> out [sum of counts, H, Dv],
  /// lse [H, sum of counts]. `options` as of KvCache::attend. `reads` is filled where it is given, on the CPU.
  std::tuple<at::Tensor, at::Tensor> attend(std::span<const SequenceTokens> parts, const at::Tensor& q,
                                            const AttentionOptions& options, ReadCount* reads = nullptr) const;

  /// Makes the empty sequence `target` begin with the first `length` tokens of `source`, whose pages they share.
  void fork(std::int64_t source, std::int64_t target, std::int64_t length);

  /// Forgets a sequence's tokens from `length` on.
  void truncate(std::int64_t sequence, std::int64_t length);

  std::int64_t length(std::int64_t sequence) const;
  std::int64_t sequences() const { return lengths_.size(0); }
  std::int64_t capacity() const { return page_tables_.size(1) * page_size_; }
  std::int64_t pages() const { return pool_.pages(); }
  std::int64_t free_pages() const { return pool_.free_pages(); }

 private:
  moba::PagedKvCache core() const;

  at::Tensor k_, v_, representatives_, running_sums_, page_tables_, lengths_;
  at::Tensor device_tables_, device_lengths_;  // of these two, on a GPU
  mutable PagePool pool_;                      // core() lends it; attend() changes nothing in it
  std::int64_t page_size_ = 0, block_size_ = 0;
  RepresentativeDType representative_dtype_ = RepresentativeDType::kInput;
};

}  // namespace moba::torch_ops
