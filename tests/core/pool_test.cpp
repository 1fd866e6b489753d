// pool: the bits of every backend, since a cached representative must be one that pooling would have given.
#include <cmath>

#include "cases/compare.h"
#include "core/support.h"
#include "dtype.h"

namespace moba::test {
namespace {

using cases::HostTensor;
using cases::Problem;

class PoolTest : public BackendTest {};

HostTensor pooled(Context& context, const Backend& backend, const Problem& problem) {
  const std::int64_t block_size = problem.options.block_size;
  HostTensor representatives(problem.k.dtype(), {block_rows(problem.keys(), problem.batch().sequences(), block_size),
                                                 problem.kv_heads(), problem.head_dim()});
  pool(context, backend, {problem.k.view(), problem.batch(), block_size, representatives.view()});
  return representatives;
}

/// The definition: float32 sum in token order, one division, one rounding; rows of no block keep their poison.
HostTensor pooled_by_definition(const Problem& problem) {
  const std::int64_t block_size = problem.options.block_size, kv_heads = problem.kv_heads(), dim = problem.head_dim();
  const std::vector<double> offsets = problem.cu_seqlens_k.values();
  HostTensor result(problem.k.dtype(),
                    {block_rows(problem.keys(), problem.batch().sequences(), block_size), kv_heads, dim});
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
    const std::int64_t begin = static_cast<std::int64_t>(offsets[s]), end = static_cast<std::int64_t>(offsets[s + 1]);
    for (std::int64_t first = begin, i = 0; first < end; first += block_size, ++i) {
      const std::int64_t last = std::min(first + block_size, end);
      const std::int64_t block_row = begin / block_size + static_cast<std::int64_t>(s) + i;
      for (std::int64_t e = 0; e < kv_heads * dim; ++e) {
        float sum = 0.0f;
        for (std::int64_t t = first; t < last; ++t) sum += static_cast<float>(problem.k.get(t * kv_heads * dim + e));
        result.set(block_row * kv_heads * dim + e, static_cast<double>(sum / static_cast<float>(last - first)));
      }
    }
  }
  return result;
}

TEST_P(PoolTest, PoolGivesTheBitsOfTheDefinition) {
  for (const cases::Case& c : cases::all_cases()) {
    if (c.options.kind != Kind::kMoba) continue;
    const Problem problem(c);
    EXPECT_TRUE(cases::same_bits(pooled(context, backend(), problem), pooled_by_definition(problem))) << c.name;
  }
}

TEST_P(PoolTest, PoolReadsStridedKeys) {
  for (DType dtype : dtypes()) {
    const Problem problem(cases::case_named("dims_13_9", dtype));
    const Problem strided = problem.to(dtype, cases::Layout::kStrided);
    EXPECT_TRUE(cases::same_bits(pooled(context, backend(), problem), pooled(context, backend(), strided)));
  }
}

// Blocks of two sequences never share a row, whatever the lengths.
TEST(BlockRows, AreDisjointAndWithinTheBound) {
  for (std::int64_t block_size = 1; block_size <= 7; ++block_size) {
    for (std::int64_t a = 0; a <= 15; ++a) {
      for (std::int64_t b = 0; b <= 15; ++b) {
        const std::int64_t lengths[] = {a, b, 3};
        std::int64_t begin = 0, next_free = 0;
        for (std::int64_t s = 0; s < 3; ++s) {
          const std::int64_t first = begin / block_size + s;
          EXPECT_GE(first, next_free);
          next_free = first + (lengths[s] + block_size - 1) / block_size;
          begin += lengths[s];
        }
        EXPECT_LE(next_free, block_rows(begin, 3, block_size));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, PoolTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace moba::test
