// score and select: the values, the order, the ties, and what is never chosen.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cases/compare.h"
#include "core/best_blocks.h"
#include "core/support.h"
#include "dtype.h"

namespace moba::test {
namespace {

using cases::Case;
using cases::HostTensor;
using cases::Problem;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Gate {
  HostTensor representatives, scores;
  std::int64_t blocks = 0;
};

Gate gate_of(Context& context, const Backend& backend, const Problem& problem) {
  const std::int64_t block_size = problem.options.block_size;
  Gate gate;
  gate.blocks = (problem.max_seqlen_k + block_size - 1) / block_size;
  gate.representatives = HostTensor(
      problem.k.dtype(),
      {block_rows(problem.keys(), problem.batch().sequences(), block_size), problem.kv_heads(), problem.head_dim()});
  pool(context, backend, {problem.k.view(), problem.batch(), block_size, gate.representatives.view()});
  const DType dtype = problem.k.dtype() == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  gate.scores = HostTensor(dtype, {problem.rows(), problem.heads(), gate.blocks});
  score(context, backend,
        {problem.q.view(), gate.representatives.view(), problem.batch(), block_size, gate.scores.view()});
  return gate;
}

/// (sequence, position) of each packed row.
std::vector<std::pair<std::size_t, std::int64_t>> positions(const Problem& problem) {
  std::vector<std::pair<std::size_t, std::int64_t>> result;
  const std::vector<double> q = problem.cu_seqlens_q.values(), k = problem.cu_seqlens_k.values();
  for (std::size_t s = 0; s + 1 < q.size(); ++s) {
    const std::int64_t q_length = static_cast<std::int64_t>(q[s + 1] - q[s]);
    const std::int64_t k_length = static_cast<std::int64_t>(k[s + 1] - k[s]);
    for (std::int64_t r = 0; r < q_length; ++r) result.emplace_back(s, r + k_length - q_length);
  }
  return result;
}

class GateTest : public CaseTest {};

std::vector<Case> moba_cases() {
  std::vector<Case> result;
  for (const Case& c : cases::all_cases()) {
    if (c.options.kind == Kind::kMoba && !c.options.compat_topk1_full) result.push_back(c);
  }
  return result;
}

TEST_P(GateTest, ScoresAreProductsWithPastRepresentatives) {
  const Problem problem(problem_case());
  const Gate gate = gate_of(context, backend(), problem);
  const std::int64_t heads = problem.heads(), kv_heads = problem.kv_heads(), dim = problem.head_dim();
  const std::int64_t block_size = problem.options.block_size;
  const std::vector<double> q = problem.q.values(), r = gate.representatives.values();
  const std::vector<double> k_offsets = problem.cu_seqlens_k.values();
  const auto where = positions(problem);
  for (std::int64_t row = 0; row < problem.rows(); ++row) {
    const auto [s, position] = where[static_cast<std::size_t>(row)];
    const std::int64_t past = position < 0 ? 0 : position / block_size;
    const std::int64_t first = static_cast<std::int64_t>(k_offsets[s]) / block_size + static_cast<std::int64_t>(s);
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t block = 0; block < gate.blocks; ++block) {
        const double score = gate.scores.get((row * heads + head) * gate.blocks + block);
        if (block >= past) {
          ASSERT_EQ(score, -kInfinity) << "row " << row << " head " << head << " block " << block;
          continue;
        }
        double exact = 0.0, size = 0.0;
        for (std::int64_t d = 0; d < dim; ++d) {
          const double product =
              q[static_cast<std::size_t>((row * heads + head) * dim + d)] *
              r[static_cast<std::size_t>(((first + block) * kv_heads + head / (heads / kv_heads)) * dim + d)];
          exact += product;
          size += std::fabs(product);
        }
        // D roundings of float32, each of at most 2^-24 of a partial sum, and no partial sum exceeds `size`.
        ASSERT_NEAR(score, exact, static_cast<double>(dim) * 0x1p-24 * size)
            << "row " << row << " head " << head << " block " << block;
      }
    }
  }
}

TEST_P(GateTest, SelectsTheBestPastBlocks) {
  const Problem problem(problem_case());
  const cases::Choice choice = cases::choose(context, backend(), problem);
  expect_best_blocks(problem, choice);
}

INSTANTIATE_TEST_SUITE_P(All, GateTest,
                         ::testing::Combine(::testing::ValuesIn(backends()), ::testing::ValuesIn(moba_cases())),
                         case_name);

class SelectTest : public BackendTest {
 protected:
  std::vector<std::int32_t> list_of(const cases::Choice& choice, std::int64_t row, std::int64_t head) const {
    const std::int64_t heads = choice.selection.selection_heads(), budget = choice.selection.budget();
    const std::int32_t* list = choice.list.view().as<std::int32_t>() + (row * heads + head) * budget;
    return {list, list + budget};
  }
};

TEST_P(SelectTest, TiesGoToTheLowerIndex) {
  for (DType dtype : dtypes()) {
    const Problem problem(cases::case_named("ties", dtype));
    const cases::Choice choice = cases::choose(context, backend(), problem);
    const std::int64_t block_size = problem.options.block_size;
    for (std::int64_t row = 0; row < problem.rows(); ++row) {
      const std::int64_t past = row / block_size;
      const std::vector<std::int32_t> expected = {past > 0 ? 0 : -1, past > 1 ? 1 : -1};
      EXPECT_EQ(list_of(choice, row, row % problem.heads()), expected) << "row " << row;
    }
  }
}

// Several positive zeros and negative zeros are equal scores, too.
TEST_P(SelectTest, SignedZeroScoresTie) {
  Problem problem(cases::case_named("two_blocks"));
  for (std::int64_t i = 0; i < problem.q.numel(); ++i) problem.q.set(i, i % 2 == 0 ? 0.0 : -0.0);
  const cases::Choice choice = cases::choose(context, backend(), problem);
  for (std::int64_t row = 64; row < problem.rows(); ++row) EXPECT_EQ(list_of(choice, row, 0)[0], 0) << "row " << row;
}

TEST_P(SelectTest, NeverChoosesAScoreThatIsNotANumber) {
  for (DType dtype : dtypes()) {
    Problem problem(cases::case_named("all_blocks_chosen", dtype));  // 200 keys, blocks of 64
    const std::int64_t row_size = problem.kv_heads() * problem.head_dim();
    problem.k.set(70 * row_size, std::numeric_limits<double>::quiet_NaN());  // block 1, key/value head 0
    const cases::Choice choice = cases::choose(context, backend(), problem);
    for (std::int64_t head = 0; head < 4; ++head) {
      const std::vector<std::int32_t> expected =
          head < 2 ? std::vector<std::int32_t>{0, 2, -1} : std::vector<std::int32_t>{0, 1, 2};
      EXPECT_EQ(list_of(choice, 199, head), expected) << "head " << head;
    }
    EXPECT_TRUE(std::isnan(gate_of(context, backend(), problem).representatives.get(1 * row_size)));
    const Gate gate = gate_of(context, backend(), problem);
    EXPECT_EQ(gate.scores.get(199 * 4 * gate.blocks + 1), -kInfinity);
  }
}

TEST_P(SelectTest, NeverChoosesMinusInfinityAndTakesPlusInfinityFirst) {
  Problem problem(cases::case_named("two_blocks"));  // top_k 2: one past block
  for (std::int64_t i = 0; i < problem.q.numel(); ++i) problem.q.set(i, std::fabs(problem.q.get(i)) + 0.1);
  const std::int64_t row_size = problem.kv_heads() * problem.head_dim();
  problem.k.set(5 * row_size, -kInfinity);                       // block 0, head 0
  problem.k.set(70 * row_size + problem.head_dim(), kInfinity);  // block 1, head 1
  const cases::Choice choice = cases::choose(context, backend(), problem);
  EXPECT_EQ(list_of(choice, 100, 0)[0], -1);
  EXPECT_EQ(list_of(choice, 199, 0)[0] == 0, false);
  EXPECT_EQ(list_of(choice, 199, 2)[0], 1);
}

TEST_P(SelectTest, QueriesThatAreNotNumbersChooseNothing) {
  Problem problem(cases::case_named("two_blocks"));
  const std::int64_t row_size = problem.heads() * problem.head_dim();
  problem.q.set(150 * row_size + 3, std::numeric_limits<double>::quiet_NaN());
  const cases::Choice choice = cases::choose(context, backend(), problem);
  EXPECT_EQ(list_of(choice, 150, 0)[0], -1);
  EXPECT_GE(list_of(choice, 150, 1)[0], 0);
  EXPECT_GE(list_of(choice, 149, 0)[0], 0);
}

// One list for the query heads of a group, or for all: by the sum of their scores.
TEST_P(SelectTest, SharedListsScoreBySums) {
  for (DType dtype : dtypes()) {
    const Problem problem(cases::case_named("many_blocks_many_chosen", dtype));
    const Gate gate = gate_of(context, backend(), problem);
    const std::int64_t heads = problem.heads(), budget = 4;
    for (std::int64_t selection_heads : {problem.kv_heads(), std::int64_t{1}}) {
      cases::Choice choice;
      choice.list = HostTensor(DType::kInt32, {problem.rows(), selection_heads, budget});
      choice.selection.kind = SelectionKind::kList;
      choice.selection.block_size = problem.options.block_size;
      choice.selection.blocks = choice.list.view();
      select(context, backend(), problem.options, problem.q.view(), problem.k.view(), gate.representatives.view(),
             problem.batch(), choice.selection);
      for (std::int64_t row = 0; row < problem.rows(); ++row) {
        const std::int64_t past = row / problem.options.block_size;
        for (std::int64_t g = 0; g < selection_heads; ++g) {
          const auto summed = [&](std::int64_t block) {
            double sum = 0.0;
            for (std::int64_t h = 0; h < heads / selection_heads; ++h) {
              sum += gate.scores.get((row * heads + g * heads / selection_heads + h) * gate.blocks + block);
            }
            return sum;
          };
          const std::vector<std::int32_t> list = list_of(choice, row, g);
          double worst = kInfinity;
          for (std::int32_t block : list) worst = block < 0 ? worst : std::min(worst, summed(block));
          for (std::int64_t block = 0; block < past; ++block) {
            const bool chosen = std::find(list.begin(), list.end(), static_cast<std::int32_t>(block)) != list.end();
            ASSERT_TRUE(chosen || summed(block) <= worst + 1e-4) << "row " << row << " list " << g;
          }
          ASSERT_EQ(std::count(list.begin(), list.end(), -1), budget - std::min(budget, past));
        }
      }
    }
  }
}

// Both backends choose alike but at near-ties.
TEST_P(SelectTest, AgreesWithTheReferenceButAtNearTies) {
  const Problem problem(cases::case_named("larger", DType::kBFloat16));
  const cases::Choice mine = cases::choose(context, backend(), problem);
  const cases::Choice reference = cases::choose(context, reference_backend(), problem);
  std::int64_t different = 0;
  for (std::int64_t i = 0; i < mine.list.numel(); ++i) different += mine.list.get(i) != reference.list.get(i);
  EXPECT_LE(different, mine.list.numel() / 1000);
}

INSTANTIATE_TEST_SUITE_P(All, SelectTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace moba::test
