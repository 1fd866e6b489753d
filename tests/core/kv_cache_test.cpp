// The key/value cache: representatives with the bits of one shot, and decode equal to prefill.
#include <cmath>
#include <limits>
#include <random>

#include "cases/compare.h"
#include "core/support.h"
#include "dtype.h"

namespace moba::test {
namespace {

using cases::Case;
using cases::HostTensor;
using cases::Problem;

/// Memory of a cache, poisoned at first.
struct CacheMemory {
  HostTensor k, v, representatives, running_sum;
  KvCache cache;

  CacheMemory(const Problem& problem, std::int64_t capacity, std::int64_t block_size) {
    const std::int64_t kv_heads = problem.kv_heads(), dim = problem.head_dim();
    const DType dtype = problem.k.dtype();
    k = HostTensor(dtype, {capacity, kv_heads, dim});
    v = HostTensor(dtype, {capacity, kv_heads, problem.value_dim()});
    cache.k = k.view();
    cache.v = v.view();
    cache.block_size = block_size;
    if (block_size == 0) return;
    representatives = HostTensor(dtype, {block_rows(capacity, 1, block_size), kv_heads, dim});
    running_sum = HostTensor(dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32, {kv_heads, dim});
    cache.representatives = representatives.view();
    cache.running_sum = running_sum.view();
  }
  CacheMemory(const CacheMemory&) = delete;
  CacheMemory& operator=(const CacheMemory&) = delete;
};

TensorView rows(TensorView tensor, std::int64_t begin, std::int64_t end) {
  tensor.data = static_cast<std::byte*>(tensor.data) + begin * tensor.stride[0] * size_of(tensor.dtype);
  tensor.shape[0] = end - begin;
  return tensor;
}

class KvCacheTest : public BackendTest {
 protected:
  void append_rows(KvCache& cache, const Problem& problem, std::int64_t begin, std::int64_t end) {
    append(context, backend(), cache, rows(problem.k.view(), begin, end), rows(problem.v.view(), begin, end));
  }

  /// The closed blocks of the cache have the bits that pooling the first `length` keys gives.
  ::testing::AssertionResult has_pooled_bits(const CacheMemory& memory, const Problem& problem) {
    const KvCache& cache = memory.cache;
    if (cache.length == 0) return ::testing::AssertionSuccess();
    HostTensor pooled(problem.k.dtype(),
                      {block_rows(cache.length, 1, cache.block_size), problem.kv_heads(), problem.head_dim()});
    const HostTensor offsets = cases::offsets_of({cache.length});
    pool(context, backend(),
         {rows(problem.k.view(), 0, cache.length),
          {{}, offsets.view(), 0, cache.length},
          cache.block_size,
          pooled.view()});
    const std::int64_t values = cache.closed_blocks() * problem.kv_heads() * problem.head_dim();
    for (std::int64_t i = 0; i < values; ++i) {
      if (memory.representatives.get(i) != pooled.get(i)) {
        return ::testing::AssertionFailure() << "length " << cache.length << ", value " << i << ": "
                                             << memory.representatives.get(i) << " and pooled " << pooled.get(i);
      }
    }
    return ::testing::AssertionSuccess();
  }

  /// Attends the rows [begin, cache.length) from the cache.
  cases::Results attend_last(const KvCache& cache, const Problem& problem, std::int64_t begin) {
    const std::int64_t count = cache.length - begin, heads = problem.heads();
    cases::Results r;
    r.out = HostTensor(problem.q.dtype(), {count, heads, problem.value_dim()});
    r.lse = HostTensor(problem.q.dtype() == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32, {heads, count});
    attend_cached(context, backend(), cache, problem.options, rows(problem.q.view(), begin, cache.length),
                  {r.out.view(), r.lse.view()});
    return r;
  }

  /// Rows from `begin` on are those of one call over the whole sequence.
  void expect_rows(const cases::Results& part, const cases::Results& whole, const Problem& problem,
                   std::int64_t begin) {
    const std::int64_t heads = problem.heads(), row_size = heads * problem.value_dim();
    const double unit = problem.q.dtype() == DType::kBFloat16  ? 0x1p-8
                        : problem.q.dtype() == DType::kFloat16 ? 0x1p-11
                                                               : 2e-6;
    for (std::int64_t i = 0; i < part.out.numel(); ++i) {
      const double expected = whole.out.get(begin * row_size + i);
      ASSERT_NEAR(part.out.get(i), expected, unit * std::max(1.0, 2.0 * std::fabs(expected)))
          << "row " << begin + i / row_size;
    }
    const std::int64_t count = part.lse.view().shape[1], total = whole.lse.view().shape[1];
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t r = 0; r < count; ++r) {
        ASSERT_NEAR(part.lse.get(h * count + r), whole.lse.get(h * total + begin + r), 1e-5) << "row " << begin + r;
      }
    }
  }
};

Problem one_sequence(std::int64_t length, std::int64_t block_size, DType dtype, std::int64_t top_k = 3) {
  Case c;
  c.dtype = dtype;
  c.options.block_size = block_size;
  c.options.top_k = top_k;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 24;
  c.value_dim = 16;
  c.q_lengths = c.k_lengths = {length};
  c.seed = 5;
  return Problem(c);
}

TEST_P(KvCacheTest, RepresentativesHaveTheSameBitsFromAnyChunking) {
  for (DType dtype : dtypes()) {
    for (std::int64_t block_size : {1, 7, 16, 200}) {
      const Problem problem = one_sequence(150, block_size, dtype);
      for (std::int64_t chunk : {1, 2, 5, 7, 15, 16, 17, 64, 149, 150}) {
        CacheMemory memory(problem, 160, block_size);
        for (std::int64_t begin = 0; begin < 150; begin += chunk) {
          append_rows(memory.cache, problem, begin, std::min<std::int64_t>(begin + chunk, 150));
          ASSERT_TRUE(has_pooled_bits(memory, problem)) << "chunk " << chunk << " block " << block_size;
        }
        ASSERT_EQ(memory.cache.length, 150);
      }
    }
  }
}

TEST_P(KvCacheTest, TruncateRestoresTheRunningSum) {
  std::mt19937_64 random(3);
  for (DType dtype : dtypes()) {
    for (std::int64_t block_size : {1, 7, 16}) {
      const Problem problem = one_sequence(150, block_size, dtype);
      CacheMemory memory(problem, 150, block_size);
      for (int step = 0; step < 60; ++step) {
        const std::int64_t room = 150 - memory.cache.length;
        const std::int64_t count =
            static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(std::min<std::int64_t>(room, 40) + 1));
        append_rows(memory.cache, problem, memory.cache.length, memory.cache.length + count);
        ASSERT_TRUE(has_pooled_bits(memory, problem)) << "block " << block_size << " step " << step;
        if (step % 2 == 1) {
          truncate(context, backend(), memory.cache,
                   static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(memory.cache.length + 1)));
        }
      }
    }
  }
}

TEST_P(KvCacheTest, DecodeIsPrefillForEveryPrefix) {
  for (DType dtype : dtypes()) {
    for (std::int64_t block_size : {1, 6, 16}) {
      const Problem problem = one_sequence(70, block_size, dtype);
      const cases::Results whole = cases::run(context, backend(), problem, false);
      CacheMemory memory(problem, 70, block_size);
      for (std::int64_t t = 0; t < 70; ++t) {
        append_rows(memory.cache, problem, t, t + 1);
        expect_rows(attend_last(memory.cache, problem, t), whole, problem, t);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(KvCacheTest, DecodeAfterTruncateIsPrefill) {
  for (DType dtype : dtypes()) {
    const Problem problem = one_sequence(64, 8, dtype);
    const cases::Results whole = cases::run(context, backend(), problem, false);
    Problem other = problem;  // tokens that are appended and then taken back
    for (std::int64_t i = 0; i < other.k.numel(); ++i) other.k.set(i, -3.0 * other.k.get(i));
    CacheMemory memory(problem, 64, 8);
    for (std::int64_t t = 0; t < 64; ++t) {
      append_rows(memory.cache, other, t, std::min<std::int64_t>(t + 11, 64));
      truncate(context, backend(), memory.cache, t);
      append_rows(memory.cache, problem, t, t + 1);
      expect_rows(attend_last(memory.cache, problem, t), whole, problem, t);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(KvCacheTest, ChunkedPrefillIsOneShotForEveryChunkSize) {
  for (std::int64_t block_size : {1, 6, 16, 100}) {
    const Problem problem = one_sequence(64, block_size, DType::kFloat32);
    const cases::Results whole = cases::run(context, backend(), problem, false);
    for (std::int64_t chunk = 1; chunk <= 64; ++chunk) {
      CacheMemory memory(problem, 64, block_size);
      for (std::int64_t begin = 0; begin < 64; begin += chunk) {
        append_rows(memory.cache, problem, begin, std::min<std::int64_t>(begin + chunk, 64));
        expect_rows(attend_last(memory.cache, problem, begin), whole, problem, begin);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Full attention or a window at decode over the same cache, and a cache that keeps no representatives.
TEST_P(KvCacheTest, OtherKindsDecodeToo) {
  for (std::int64_t cache_block : {std::int64_t{8}, std::int64_t{0}}) {
    for (Kind kind : {Kind::kFull, Kind::kWindow}) {
      Problem problem = one_sequence(50, 8, DType::kFloat32);
      problem.options.kind = kind;
      problem.options.window = 9;
      problem.options.sink = 2;
      const cases::Results whole = cases::run(context, backend(), problem, false);
      CacheMemory memory(problem, 50, cache_block);
      append_rows(memory.cache, problem, 0, 20);
      expect_rows(attend_last(memory.cache, problem, 0), whole, problem, 0);
      for (std::int64_t t = 20; t < 50; ++t) {
        append_rows(memory.cache, problem, t, t + 1);
        expect_rows(attend_last(memory.cache, problem, t), whole, problem, t);
        if (HasFatalFailure()) return;
      }
      truncate(context, backend(), memory.cache, 31);
      expect_rows(attend_last(memory.cache, problem, 30), whole, problem, 30);
    }
  }
}

// Right after the last token of a block, that block is closed and is still that token's own: it must not be counted
// twice. With top_k 2 and every later block far away, the row sees its own block and the best of the earlier ones.
TEST_P(KvCacheTest, ClosedBlockIsNotChosenByItsOwnLastToken) {
  Problem problem = one_sequence(16, 4, DType::kFloat32, 2);
  const cases::Results whole = cases::run(context, backend(), problem, false);
  CacheMemory memory(problem, 16, 4);
  for (std::int64_t end : {4, 8, 12, 16}) {
    append_rows(memory.cache, problem, memory.cache.length, end);
    EXPECT_EQ(memory.cache.closed_blocks(), end / 4);
    expect_rows(attend_last(memory.cache, problem, end - 1), whole, problem, end - 1);
  }
  EXPECT_EQ(context.error_bits, 0);
}

TEST_P(KvCacheTest, AppendBeyondTheCapacityWritesNothing) {
  const Problem problem = one_sequence(20, 8, DType::kFloat32);
  CacheMemory memory(problem, 12, 8);
  append_rows(memory.cache, problem, 0, 10);
  const HostTensor k = memory.k, v = memory.v, sum = memory.running_sum, representatives = memory.representatives;
  try {
    append_rows(memory.cache, problem, 10, 13);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find("number of new tokens is 3"), std::string::npos) << error.what();
  }
  EXPECT_EQ(memory.cache.length, 10);
  EXPECT_TRUE(cases::same_bits(memory.k, k));
  EXPECT_TRUE(cases::same_bits(memory.v, v));
  EXPECT_TRUE(cases::same_bits(memory.running_sum, sum));
  EXPECT_TRUE(cases::same_bits(memory.representatives, representatives));
}

TEST_P(KvCacheTest, EmptyCacheAndEmptyChunks) {
  const Problem problem = one_sequence(20, 8, DType::kFloat32);
  CacheMemory memory(problem, 20, 8);
  append_rows(memory.cache, problem, 0, 0);
  truncate(context, backend(), memory.cache, 0);
  EXPECT_EQ(attend_last(memory.cache, problem, 0).out.numel(), 0);
  append_rows(memory.cache, problem, 0, 20);
  EXPECT_EQ(attend_last(memory.cache, problem, 20).out.numel(), 0);
}

TEST_P(KvCacheTest, Errors) {
  const Problem problem = one_sequence(20, 8, DType::kFloat32);
  CacheMemory memory(problem, 20, 8);
  append_rows(memory.cache, problem, 0, 10);
  const auto expect_error = [&](const auto& body, const std::string& text) {
    try {
      body();
      FAIL() << "no error; expected " << text;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
  };
  expect_error([&] { truncate(context, backend(), memory.cache, 11); }, "length is 11");
  expect_error([&] { truncate(context, backend(), memory.cache, -1); }, "length is -1");
  expect_error([&] { attend_last(memory.cache, problem, -5); }, "number of rows of q");
  Problem other = problem;
  other.options.block_size = 4;
  expect_error([&] { attend_last(memory.cache, other, 5); }, "block_size is 4");
  KvCache broken = memory.cache;
  broken.length = 21;
  expect_error([&] { append_rows(broken, problem, 0, 0); }, "cache.length is 21");
  broken = memory.cache;
  broken.running_sum = {};
  expect_error([&] { append_rows(broken, problem, 0, 1); }, "cache.running_sum");
  expect_error([&] { append(context, backend(), memory.cache, problem.q.view(), problem.v.view()); }, "k_new");
}

INSTANTIATE_TEST_SUITE_P(All, KvCacheTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace moba::test
