#include "core/paged_support.h"

#include <cstddef>
#include <cstring>
#include <utility>

namespace moba::test {

using cases::HostTensor;
using cases::Problem;
using cases::Results;

namespace {

DType representative_dtype(const Problem& universe) {
  return universe.options.representative_dtype == RepresentativeDType::kFloat32 ? DType::kFloat32 : universe.k.dtype();
}

}  // namespace

PagedMemory::PagedMemory(const Problem& universe, const Sizes& sizes) : pool(sizes.pages) {
  const std::int64_t rows = sizes.pages * sizes.page_size, heads = universe.kv_heads(), dim = universe.head_dim();
  const DType dtype = universe.k.dtype();
  k = HostTensor(dtype, {rows, heads, dim});
  v = HostTensor(dtype, {rows, heads, universe.value_dim()});
  page_tables = HostTensor(DType::kInt32, {sizes.sequences, sizes.width});
  lengths = HostTensor(DType::kInt64, {sizes.sequences});
  for (std::int64_t s = 0; s < sizes.sequences; ++s) lengths.set(s, 0);
  cache.k = k.view();
  cache.v = v.view();
  cache.page_tables = page_tables.view();
  cache.lengths = lengths.view();
  cache.pool = &pool;
  cache.page_size = sizes.page_size;
  cache.block_size = sizes.block_size;
  if (sizes.block_size == 0) return;
  representatives = HostTensor(representative_dtype(universe), {sizes.pages, heads, dim});
  running_sums = HostTensor(DType::kFloat32, {sizes.sequences, heads, dim});
  cache.representatives = representatives.view();
  cache.running_sums = running_sums.view();
}

std::int32_t PagedMemory::page(std::int64_t sequence, std::int64_t index) const {
  return cache.page_tables.as<std::int32_t>()[sequence * cache.page_tables.stride[0] + index];
}

::testing::AssertionResult PagedMemory::counts_are_right() const {
  std::vector<std::int64_t> named(static_cast<std::size_t>(pool.pages()), 0);
  for (std::int64_t s = 0; s < cache.sequences(); ++s) {
    const std::int64_t pages = (cache.length(s) + cache.page_size - 1) / cache.page_size;
    for (std::int64_t i = 0; i < pages; ++i) ++named.at(static_cast<std::size_t>(page(s, i)));
  }
  std::int64_t unused = 0;
  for (std::int32_t p = 0; p < pool.pages(); ++p) {
    const std::int64_t expected = named[static_cast<std::size_t>(p)];
    unused += expected == 0;
    if (pool.holders(p) != expected) {
      return ::testing::AssertionFailure()
             << "page " << p << " has " << pool.holders(p) << " holders; tables name it " << expected << " times";
    }
  }
  if (pool.free_pages() != unused) {
    return ::testing::AssertionFailure() << pool.free_pages() << " free pages, " << unused << " unused";
  }
  return ::testing::AssertionSuccess();
}

PagedSnapshot::PagedSnapshot(const PagedMemory& memory)
    : k_(memory.k),
      v_(memory.v),
      representatives_(memory.representatives),
      running_sums_(memory.running_sums),
      page_tables_(memory.page_tables),
      lengths_(memory.lengths) {
  for (std::int32_t p = 0; p < memory.pool.pages(); ++p) holders_.push_back(memory.pool.holders(p));
}

::testing::AssertionResult PagedSnapshot::is_now(const PagedMemory& memory) const {
  const std::pair<const HostTensor*, const HostTensor*> pairs[] = {{&k_, &memory.k},
                                                                   {&v_, &memory.v},
                                                                   {&representatives_, &memory.representatives},
                                                                   {&running_sums_, &memory.running_sums},
                                                                   {&page_tables_, &memory.page_tables},
                                                                   {&lengths_, &memory.lengths}};
  for (const auto& [before, now] : pairs) {
    if (before->numel() > 0 && !cases::same_bits(*before, *now)) {
      return ::testing::AssertionFailure() << "tensor " << before - pairs[0].first << " has changed";
    }
  }
  for (std::int32_t p = 0; p < memory.pool.pages(); ++p) {
    if (memory.pool.holders(p) != holders_[static_cast<std::size_t>(p)]) {
      return ::testing::AssertionFailure() << "the holders of page " << p << " have changed";
    }
  }
  return ::testing::AssertionSuccess();
}

HostTensor rows_of_tokens(const HostTensor& tensor, const std::vector<std::int64_t>& tokens) {
  const TensorView from = tensor.view();
  const std::int64_t size = from.shape[1] * from.shape[2];
  HostTensor result(from.dtype, {static_cast<std::int64_t>(tokens.size()), from.shape[1], from.shape[2]});
  const auto bytes = static_cast<std::size_t>(size * size_of(from.dtype));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::memcpy(static_cast<std::byte*>(result.view().data) + i * bytes,
                static_cast<const std::byte*>(from.data) + static_cast<std::size_t>(tokens[i]) * bytes, bytes);
  }
  return result;
}

Results one_shot(Context& context, const Backend& backend, const Problem& universe, const AttentionOptions& options,
                 const std::vector<std::int64_t>& tokens) {
  Problem problem;
  problem.options = options;
  problem.q = rows_of_tokens(universe.q, tokens);
  problem.k = rows_of_tokens(universe.k, tokens);
  problem.v = rows_of_tokens(universe.v, tokens);
  problem.max_seqlen_q = problem.max_seqlen_k = static_cast<std::int64_t>(tokens.size());
  problem.cu_seqlens_q = problem.cu_seqlens_k = cases::offsets_of({problem.max_seqlen_k});
  return cases::run(context, backend, problem, false);
}

Results from_kv_cache(Context& context, const Backend& backend, const Problem& universe,
                      const AttentionOptions& options, const std::vector<std::int64_t>& tokens, std::int64_t count) {
  const std::int64_t length = static_cast<std::int64_t>(tokens.size());
  const std::int64_t kv_heads = universe.kv_heads(), dim = universe.head_dim(), block_size = options.block_size;
  const HostTensor k(universe.k.dtype(), {length, kv_heads, dim});
  const HostTensor v(universe.k.dtype(), {length, kv_heads, universe.value_dim()});
  const HostTensor representatives(representative_dtype(universe), {block_rows(length, 1, block_size), kv_heads, dim});
  const HostTensor sum(DType::kFloat32, {kv_heads, dim});
  KvCache cache{k.view(), v.view(), representatives.view(), sum.view(), block_size, 0};
  append(context, backend, cache, rows_of_tokens(universe.k, tokens).view(), rows_of_tokens(universe.v, tokens).view());
  Results r;
  r.out = HostTensor(universe.q.dtype(), {count, universe.heads(), universe.value_dim()});
  r.lse = HostTensor(DType::kFloat32, {universe.heads(), count});
  const std::vector<std::int64_t> last(tokens.end() - count, tokens.end());
  attend_cached(context, backend, cache, options, rows_of_tokens(universe.q, last).view(),
                {r.out.view(), r.lse.view()});
  return r;
}

void PagedModel::append_tokens(const std::vector<SequenceTokens>& parts, std::int64_t first) {
  std::vector<std::int64_t> added;
  for (const SequenceTokens& part : parts) {
    for (std::int64_t i = 0; i < part.count; ++i) {
      added.push_back((first + static_cast<std::int64_t>(added.size())) % universe_.keys());
    }
  }
  append(context_, backend_, memory.cache, parts, rows_of_tokens(universe_.k, added).view(),
         rows_of_tokens(universe_.v, added).view());
  auto next = added.begin();
  for (const SequenceTokens& part : parts) {
    std::vector<std::int64_t>& to = tokens[static_cast<std::size_t>(part.sequence)];
    to.insert(to.end(), next, next + part.count);
    next += part.count;
  }
}

void PagedModel::fork_tokens(std::int64_t source, std::int64_t target, std::int64_t length) {
  fork(context_, backend_, memory.cache, source, target, length);
  const std::vector<std::int64_t>& from = tokens[static_cast<std::size_t>(source)];
  tokens[static_cast<std::size_t>(target)] = std::vector<std::int64_t>(from.begin(), from.begin() + length);
}

void PagedModel::truncate_tokens(std::int64_t sequence, std::int64_t length) {
  truncate(context_, backend_, memory.cache, sequence, length);
  tokens[static_cast<std::size_t>(sequence)].resize(static_cast<std::size_t>(length));
}

Results PagedModel::attend(const std::vector<SequenceTokens>& parts, const AttentionOptions& options,
                           ReadCount* reads) {
  std::vector<std::int64_t> last;
  for (const SequenceTokens& part : parts) {
    const std::vector<std::int64_t>& all = tokens[static_cast<std::size_t>(part.sequence)];
    last.insert(last.end(), all.end() - part.count, all.end());
  }
  const std::int64_t rows = static_cast<std::int64_t>(last.size());
  Results r;
  r.out = HostTensor(universe_.q.dtype(), {rows, universe_.heads(), universe_.value_dim()});
  r.lse = HostTensor(DType::kFloat32, {universe_.heads(), rows});
  attend_cached(context_, backend_, memory.cache, parts, options, rows_of_tokens(universe_.q, last).view(),
                {r.out.view(), r.lse.view()}, reads);
  return r;
}

void PagedModel::expect_attention(const std::vector<SequenceTokens>& parts, const AttentionOptions& options) {
  const Results batch = attend(parts, options);
  const std::int64_t heads = universe_.heads(), row_size = heads * universe_.value_dim();
  const std::int64_t rows = batch.out.view().shape[0];
  const DType dtype = universe_.q.dtype();
  const double unit = dtype == DType::kBFloat16 ? 0x1p-8 : dtype == DType::kFloat16 ? 0x1p-11 : 2e-6;
  std::int64_t first = 0;
  for (const SequenceTokens& part : parts) {
    const std::vector<std::int64_t>& all = tokens[static_cast<std::size_t>(part.sequence)];
    const std::int64_t length = static_cast<std::int64_t>(all.size()), skipped = length - part.count;
    if (part.count == 0) continue;
    const Results alone = from_kv_cache(context_, backend_, universe_, options, all, part.count);
    const Results exact = one_shot(context_, reference_backend(), universe_, options, all);
    for (std::int64_t i = 0; i < part.count * row_size; ++i) {
      const double got = batch.out.get(first * row_size + i), expected = exact.out.get(skipped * row_size + i);
      ASSERT_EQ(got, alone.out.get(i)) << "sequence " << part.sequence << ", row " << skipped + i / row_size;
      ASSERT_NEAR(got, expected, unit * std::max(1.0, 2.0 * std::fabs(expected)))
          << "sequence " << part.sequence << ", row " << skipped + i / row_size;
    }
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t r = 0; r < part.count; ++r) {
        const double got = batch.lse.get(h * rows + first + r);
        ASSERT_EQ(got, alone.lse.get(h * part.count + r)) << "sequence " << part.sequence << ", row " << skipped + r;
        ASSERT_NEAR(got, exact.lse.get(h * length + skipped + r), 1e-5);
      }
    }
    first += part.count;
  }
}

}  // namespace moba::test
