// bfloat16 through the paths that products of pairs take: enough rows for tiles of 64, odd dims and lengths, values
// that are not finite, and the same choice of blocks whatever the path. They hold at every SIMD level.
#include <cmath>
#include <limits>
#include <random>

#include "cases/compare.h"
#include "cases/dense.h"
#include "core/support.h"

namespace moba::test {
namespace {

using cases::Case;
using cases::Choice;
using cases::HostTensor;
using cases::Problem;
using cases::Results;

Case bfloat16_case(std::int64_t length, std::int64_t block_size, std::int64_t top_k) {
  Case c;
  c.dtype = DType::kBFloat16;
  c.options.block_size = block_size;
  c.options.top_k = top_k;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 33;
  c.value_dim = 21;
  c.q_lengths = c.k_lengths = {length};
  c.seed = static_cast<std::uint64_t>(length * 31 + block_size);
  return c;
}

void expect_right(const Problem& problem) {
  TestContext context(2);
  const Choice choice = cases::choose(context, cpu_backend(), problem);
  const Results result = cases::run(context, cpu_backend(), problem, choice.selection);
  const cases::Mask mask(problem, choice.selection);
  cases::expect_within_twice(result, cases::dense_same_precision(problem, mask), cases::dense_exact(problem, mask));
}

TEST(PairsTest, EveryCountOfRowsAndKeysIsRight) {
  for (std::int64_t length : {17, 31, 33, 63, 64, 65, 127, 130, 191, 257}) {
    for (std::int64_t block_size : {7, 64, 100}) {
      SCOPED_TRACE(std::to_string(length) + " keys, blocks of " + std::to_string(block_size));
      expect_right(Problem(bfloat16_case(length, block_size, 3)));
    }
  }
}

TEST(PairsTest, OtherDimsAreRight) {
  for (const auto& [dim, value_dim] : {std::pair{8, 8}, {64, 128}, {130, 65}, {256, 200}}) {
    SCOPED_TRACE(std::to_string(dim) + " " + std::to_string(value_dim));
    Case c = bfloat16_case(150, 40, 3);
    c.head_dim = dim;
    c.value_dim = value_dim;
    expect_right(Problem(c));
  }
}

// Weights are kept relative to a maximum that may lag: rows whose scores climb by hundreds from block to block must not
// overflow.
TEST(PairsTest, ClimbingScoresAreRight) {
  Case c = bfloat16_case(600, 64, 9);
  Problem problem(c);
  const std::int64_t row = c.kv_heads * c.head_dim;
  for (std::int64_t i = 0; i < problem.k.numel(); ++i) {
    problem.k.set(i, problem.k.get(i) * (0.2 + static_cast<double>(i / row) / 6.0));
  }
  expect_right(problem);
}

// The choice of one shot, of chunks and of single rows, for budgets on both sides of what lanes keep.
TEST(PairsTest, ChunksAndSingleRowsChooseTheSameBlocks) {
  for (std::int64_t top_k : {2, 3, 4, 8, 10, 17, 18, 30}) {
    SCOPED_TRACE(top_k);
    const Problem problem(bfloat16_case(400, 9, top_k));
    TestContext context(2);
    const Choice whole = cases::choose(context, cpu_backend(), problem);
    const std::int64_t list = whole.list.numel() / 400;
    for (std::int64_t rows : {1, 3, 5, 70}) {
      Problem last = problem;
      last.q = HostTensor(DType::kBFloat16, {rows, problem.heads(), problem.head_dim()});
      for (std::int64_t i = 0; i < last.q.numel(); ++i) {
        last.q.set(i, problem.q.get(problem.q.numel() - last.q.numel() + i));
      }
      last.cu_seqlens_q = cases::offsets_of({rows});
      last.max_seqlen_q = rows;
      const Choice part = cases::choose(context, cpu_backend(), last);
      for (std::int64_t i = 0; i < rows * list; ++i) {
        ASSERT_EQ(part.list.get(i), whole.list.get((400 - rows) * list + i)) << rows << " rows, entry " << i;
      }
    }
  }
}

// More past blocks than a tile of the gate holds, and scores of few values: ties within a tile and between tiles, with
// and without forced blocks. Whole numbers this small are exact, so the reference names the very same lists.
TEST(PairsTest, ListsOverManyTilesAreThoseOfTheReference) {
  const std::int64_t length = 2300;
  Case c = bfloat16_case(length, 2, 2);
  c.heads = 2;
  c.kv_heads = 1;
  c.head_dim = c.value_dim = 8;
  Problem problem(c);
  for (const std::int64_t values : {2, 9}) {
    std::mt19937_64 random(static_cast<std::uint64_t>(values));
    const auto fill = [&](HostTensor& tensor, std::int64_t step) {
      for (std::int64_t i = 0; i < tensor.numel(); ++i) {
        const std::int64_t value = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(values));
        tensor.set(i, static_cast<double>(step * (value - values / 2)));
      }
    };
    fill(problem.q, 1);
    fill(problem.k, 2);
    for (const std::int64_t top_k : {2, 5, 8, 17}) {
      for (const bool forced : {false, true}) {
        SCOPED_TRACE(std::to_string(values) + " values, top_k " + std::to_string(top_k) + ", forced " +
                     std::to_string(forced));
        problem.options.top_k = top_k;
        problem.options.force_previous = forced && top_k > 2;
        problem.options.sink_blocks = forced ? 1 : 0;
        TestContext context(2);
        const Choice mine = cases::choose(context, cpu_backend(), problem);
        const Choice exact = cases::choose(context, reference_backend(), problem);
        const std::int64_t budget = mine.selection.budget(), row = c.heads * budget;
        for (std::int64_t i = 0; i < length * row; ++i) {
          ASSERT_EQ(mine.list.get(i), exact.list.get(i)) << "row " << i / row << ", slot " << i % budget;
        }
      }
    }
  }
}

TEST(PairsTest, EqualScoresChooseTheLowestBlocks) {
  for (std::int64_t top_k : {3, 6, 9, 17, 20}) {
    SCOPED_TRACE(top_k);
    Case c = bfloat16_case(700, 10, top_k);
    c.data = cases::Data::kEqualKeys;
    const Problem problem(c);
    TestContext context(2);
    const Choice choice = cases::choose(context, cpu_backend(), problem);
    const std::int64_t budget = choice.selection.budget();
    for (std::int64_t row = 200; row < 700; ++row) {
      for (std::int64_t slot = 0; slot < budget; ++slot) {
        ASSERT_EQ(choice.list.get(row * problem.heads() * budget + slot), slot) << "row " << row;
      }
    }
  }
}

// What a row does not see does not touch it, whatever it holds: out, lse and dq of earlier rows keep every bit.
TEST(PairsTest, LaterInfinitiesAndNaNsTouchNoEarlierRow) {
  for (Kind kind : {Kind::kFull, Kind::kMoba, Kind::kWindow}) {
    SCOPED_TRACE(name_of(kind));
    Case c = bfloat16_case(300, 40, 3);
    c.options.kind = kind;
    c.options.window = 50;
    c.options.sink = 3;
    Problem problem(c);
    TestContext context(2);
    const std::int64_t clean = 150;
    const Choice choice = cases::choose(context, cpu_backend(), problem);
    const Results before = cases::run(context, cpu_backend(), problem, choice.selection);
    const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
    const auto spoil = [&](HostTensor& tensor) {
      const std::int64_t row = tensor.numel() / 300;
      for (std::int64_t i = clean * row; i < tensor.numel(); i += 3) tensor.set(i, i % 2 == 0 ? nan : infinity);
    };
    spoil(problem.k);
    spoil(problem.v);
    const Results after = cases::run(context, cpu_backend(), problem, choice.selection);
    const auto same = [](double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); };
    for (std::int64_t i = 0; i < clean * problem.heads() * problem.value_dim(); ++i) {
      ASSERT_TRUE(same(before.out.get(i), after.out.get(i))) << "out " << i;
    }
    for (std::int64_t head = 0; head < problem.heads(); ++head) {
      for (std::int64_t row = 0; row < clean; ++row) {
        ASSERT_EQ(before.lse.get(head * 300 + row), after.lse.get(head * 300 + row));
      }
    }
    for (std::int64_t i = 0; i < clean * problem.heads() * problem.head_dim(); ++i) {
      ASSERT_TRUE(same(before.dq.get(i), after.dq.get(i))) << "dq " << i;
    }
  }
}

// A gradient that is not finite spoils the keys that its row sees and no other.
TEST(PairsTest, GradientsOfHiddenKeysStayFinite) {
  Case c = bfloat16_case(200, 40, 2);
  Problem problem(c);
  TestContext context(2);
  const Choice choice = cases::choose(context, cpu_backend(), problem);
  const std::int64_t row = 130, size = problem.heads() * problem.value_dim();
  for (std::int64_t i = row * size; i < (row + 1) * size; ++i) {
    problem.dout.set(i, std::numeric_limits<double>::infinity());
  }
  const Results r = cases::run(context, cpu_backend(), problem, choice.selection);
  for (const HostTensor* tensor : {&r.dk, &r.dv}) {
    const std::int64_t of_key = tensor->numel() / 200;
    for (std::int64_t i = (row + 1) * of_key; i < tensor->numel(); ++i) ASSERT_TRUE(std::isfinite(tensor->get(i))) << i;
  }
}

}  // namespace
}  // namespace moba::test
