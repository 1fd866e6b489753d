// A paged cache with memory of its own, and the model it is compared with: every sequence as a list of tokens, computed
// anew from nothing.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cases/compare.h"
#include "core/support.h"

namespace moba::test {

/// Memory of a cache, poisoned at first but for the lengths.
struct PagedMemory {
  cases::HostTensor k, v, representatives, running_sums, page_tables, lengths;
  PagePool pool;
  PagedKvCache cache;

  struct Sizes {
    std::int64_t pages, page_size, block_size, sequences, width;
  };
  PagedMemory(const cases::Problem& universe, const Sizes& sizes);
  PagedMemory(const PagedMemory&) = delete;
  PagedMemory& operator=(const PagedMemory&) = delete;

  std::int32_t page(std::int64_t sequence, std::int64_t index) const;
  /// Every page of the pool has as many holders as there are tables that name it.
  ::testing::AssertionResult counts_are_right() const;
};

/// All that a call may change.
struct PagedSnapshot {
  explicit PagedSnapshot(const PagedMemory& memory);
  ::testing::AssertionResult is_now(const PagedMemory& memory) const;

 private:
  cases::HostTensor k_, v_, representatives_, running_sums_, page_tables_, lengths_;
  std::vector<std::int64_t> holders_;
};

/// Rows of `tensor` in the order of `tokens`.
cases::HostTensor rows_of_tokens(const cases::HostTensor& tensor, const std::vector<std::int64_t>& tokens);

/// Attention of the last `count` of `tokens` of the universe in one call over all of them, by `backend`.
cases::Results one_shot(Context& context, const Backend& backend, const cases::Problem& universe,
                        const AttentionOptions& options, const std::vector<std::int64_t>& tokens);

/// The same from a KvCache that was given all the tokens at once.
cases::Results from_kv_cache(Context& context, const Backend& backend, const cases::Problem& universe,
                             const AttentionOptions& options, const std::vector<std::int64_t>& tokens,
                             std::int64_t count);

/// A paged cache beside its model.
class PagedModel {
 public:
  PagedModel(Context& context, const Backend& backend, const cases::Problem& universe, const PagedMemory::Sizes& sizes)
      : context_(context),
        backend_(backend),
        universe_(universe),
        memory(universe, sizes),
        tokens(static_cast<std::size_t>(sizes.sequences)) {}

  /// The tokens that follow are those numbered from `first` on in the universe (round and round).
  void append_tokens(const std::vector<SequenceTokens>& parts, std::int64_t first);
  void fork_tokens(std::int64_t source, std::int64_t target, std::int64_t length);
  void truncate_tokens(std::int64_t sequence, std::int64_t length);

  cases::Results attend(const std::vector<SequenceTokens>& parts, const AttentionOptions& options,
                        ReadCount* reads = nullptr);
  /// attend() has the bits of calls over caches of one sequence, and is near the reference in one shot.
  void expect_attention(const std::vector<SequenceTokens>& parts, const AttentionOptions& options);

 private:
  Context& context_;
  const Backend& backend_;
  const cases::Problem& universe_;

 public:
  PagedMemory memory;
  std::vector<std::vector<std::int64_t>> tokens;  // of each sequence
};

}  // namespace moba::test
