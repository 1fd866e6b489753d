// Few query rows against long keys, where the CPU backend cuts the keys between tasks; and rows that must not count.
#include <cmath>
#include <limits>
#include <random>

#include "cases/compare.h"
#include "core/support.h"

namespace moba::test {
namespace {

using cases::HostTensor;
using cases::Problem;
using cases::Results;

/// Sequences of few queries and thousands of keys, which the reference still does in milliseconds.
Problem long_keys() {
  std::mt19937_64 random(7);
  Problem p;
  p.q = cases::random_tensor(random, DType::kFloat32, {4, 4, 24});
  p.k = cases::random_tensor(random, DType::kFloat32, {5600, 2, 24});
  p.v = cases::random_tensor(random, DType::kFloat32, {5600, 2, 20});
  p.dout = cases::random_tensor(random, DType::kFloat32, {4, 4, 20});
  p.dlse = cases::random_tensor(random, DType::kFloat32, {4, 4});
  p.cu_seqlens_q = cases::offsets_of({1, 3});
  p.cu_seqlens_k = cases::offsets_of({2500, 3100});
  p.max_seqlen_q = 3;
  p.max_seqlen_k = 3100;
  return p;
}

TEST(FewRowsTest, LongKeysEqualTheReference) {
  TestContext context(2);
  const Problem problem = long_keys();
  Selection span;
  span.kind = SelectionKind::kSpan;
  span.window = 1500;
  span.sink = 40;
  for (const Selection& selection : {Selection{}, span}) {
    const Results mine = cases::run(context, cpu_backend(), problem, selection, false);
    const Results reference = cases::run(context, reference_backend(), problem, selection, false);
    EXPECT_TRUE(cases::is_close(mine.out, reference.out, 2e-6));
    EXPECT_TRUE(cases::is_close(mine.lse, reference.lse, 2e-6));
  }
}

// A row whose lse is -inf has no gradient and gives none, whatever its output gradient holds.
TEST(FewRowsTest, RowsWithoutWeightGiveNoGradient) {
  TestContext context(2);
  Problem problem(cases::case_named("two_blocks"));
  const std::int64_t row_size = problem.kv_heads() * problem.head_dim();
  for (std::int64_t i = 0; i < problem.q.numel(); ++i) problem.q.set(i, 1.0);
  for (std::int64_t i = 0; i < row_size; ++i) problem.k.set(i, -std::numeric_limits<double>::infinity());
  for (std::int64_t i = 0; i < problem.value_dim() * problem.heads(); ++i) {
    problem.dout.set(i, std::numeric_limits<double>::quiet_NaN());  // of row 0, which sees key 0 alone
  }
  const Results mine = cases::run(context, cpu_backend(), problem, Selection{});
  ASSERT_EQ(mine.lse.get(0), -std::numeric_limits<double>::infinity());
  for (std::int64_t i = 0; i < mine.dv.numel(); ++i) ASSERT_TRUE(std::isfinite(mine.dv.get(i))) << i;
}

}  // namespace
}  // namespace moba::test
