// The diagnosis of a choice: the list and scores of `select` and `score`, and shares of an attention computed densely.
#include <cmath>
#include <limits>

#include "cases/compare.h"
#include "cases/dense.h"
#include "core/support.h"

namespace moba::test {
namespace {

using cases::HostTensor;
using cases::Problem;

struct Found {
  HostTensor list, scores, mass;
  Diagnosis diagnosis;
};

Found diagnose_problem(Context& context, const Backend& backend, const Problem& problem) {
  const DType sums = problem.q.dtype() == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  Found found;
  Diagnosis& diagnosis = found.diagnosis;
  diagnosis.selection =
      plan_selection(problem.options, problem.rows(), problem.heads(), problem.kv_heads(), problem.max_seqlen_k);
  if (diagnosis.selection.kind == SelectionKind::kList) {
    const TensorView& blocks = diagnosis.selection.blocks;
    found.list = HostTensor(DType::kInt32, {blocks.shape[0], blocks.shape[1], blocks.shape[2]});
    found.scores = HostTensor(sums, {blocks.shape[0], blocks.shape[1], blocks.shape[2]});
    diagnosis.selection.blocks = found.list.view();
    diagnosis.scores = found.scores.view();
  }
  found.mass = HostTensor(sums, {problem.heads(), problem.rows()});
  diagnosis.mass = found.mass.view();
  diagnose(context, backend, problem.options, problem.q.view(), problem.k.view(), problem.batch(), diagnosis);
  return found;
}

class DiagnoseTest : public CaseTest {};

// The share by its definition: weights of a dense softmax in double precision, summed over the keys that a row sees.
TEST_P(DiagnoseTest, MassIsTheShareOfADenseSoftmax) {
  const Problem problem(problem_case());
  const Found found = diagnose_problem(context, backend(), problem);
  const cases::Mask mask(problem, found.diagnosis.selection), all(problem, Selection{});
  const std::int64_t rows = problem.rows(), heads = problem.heads(), kv_heads = problem.kv_heads();
  const std::int64_t dim = problem.head_dim();
  const std::vector<double> q = problem.q.values(), k = problem.k.values();
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      std::vector<double> logits(static_cast<std::size_t>(problem.keys()), -HUGE_VAL);
      double maximum = -HUGE_VAL, seen = 0.0, total = 0.0;
      for (std::int64_t key = 0; key < problem.keys(); ++key) {
        if (!all.sees(row, head, key)) continue;
        double product = 0.0;
        for (std::int64_t d = 0; d < dim; ++d) {
          product += q[static_cast<std::size_t>((row * heads + head) * dim + d)] *
                     k[static_cast<std::size_t>((key * kv_heads + head / (heads / kv_heads)) * dim + d)];
        }
        logits[static_cast<std::size_t>(key)] = problem.scale() * product;
        maximum = std::max(maximum, problem.scale() * product);
      }
      for (std::int64_t key = 0; key < problem.keys(); ++key) {
        const double weight = std::exp(logits[static_cast<std::size_t>(key)] - maximum);
        if (!all.sees(row, head, key)) continue;
        total += weight;
        if (mask.sees(row, head, key)) seen += weight;
      }
      // Two float32 lse of some tens.
      ASSERT_NEAR(found.mass.get(head * rows + row), total > 0 ? seen / total : 1.0, 4e-5) << row << " " << head;
    }
  }
}

TEST_P(DiagnoseTest, TheListIsThatOfSelect) {
  const Problem problem(problem_case());
  const Found found = diagnose_problem(context, backend(), problem);
  if (found.diagnosis.selection.kind != SelectionKind::kList) return;
  EXPECT_TRUE(cases::same_bits(found.list, cases::choose(context, backend(), problem).list));
}

std::vector<cases::Case> diagnosed_cases() {
  std::vector<cases::Case> result;
  for (const char* name :
       {"packed", "mixed_lengths", "fewer_queries_than_keys", "queries_without_keys", "group_share_sum_prob",
        "layer_share_max", "every_gate_option", "window_with_sink", "full", "all_blocks_chosen", "skewed_choice"}) {
    for (DType dtype : dtypes()) result.push_back(cases::case_named(name, dtype));
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(All, DiagnoseTest,
                         ::testing::Combine(::testing::ValuesIn(backends()), ::testing::ValuesIn(diagnosed_cases())),
                         case_name);

// One head a list: the scores are those of the score verb, before rounding.
TEST(DiagnoseScores, AreThoseOfTheScoreVerb) {
  TestContext context;
  const Problem problem(cases::case_named("skewed_choice"));
  const Found found = diagnose_problem(context, cpu_backend(), problem);
  const std::int64_t size = problem.options.block_size, blocks = (problem.max_seqlen_k + size - 1) / size;
  HostTensor means(DType::kFloat32, {block_rows(problem.keys(), 1, size), problem.kv_heads(), problem.head_dim()});
  HostTensor scores(DType::kFloat32, {problem.rows(), problem.heads(), blocks});
  pool(context, reference_backend(), {problem.k.view(), problem.batch(), size, means.view()});
  score(context, reference_backend(), {problem.q.view(), means.view(), problem.batch(), size, scores.view()});
  for (std::int64_t i = 0; i < found.list.numel(); ++i) {
    const std::int64_t block = static_cast<std::int64_t>(found.list.get(i)), budget = found.list.view().shape[2];
    if (block < 0) {
      ASSERT_TRUE(std::isnan(found.scores.get(i)));
    } else {
      ASSERT_EQ(found.scores.get(i), scores.get(i / budget * blocks + block));
    }
  }
}

// Probabilities of the heads of a list, added up over all past blocks, are as many as the heads.
TEST(DiagnoseScores, ProbabilitiesOfAllBlocksAddUpToTheHeads) {
  TestContext context;
  Problem problem(cases::case_named("group_share_sum_prob"));
  problem.options.top_k = 100;
  const Found found = diagnose_problem(context, cpu_backend(), problem);
  const std::int64_t lists = 2, budget = found.list.view().shape[2];
  for (std::int64_t row = 0; row < problem.rows(); ++row) {
    for (std::int64_t list = 0; list < lists; ++list) {
      double sum = 0.0;
      for (std::int64_t slot = 0; slot < budget; ++slot) {
        const double score = found.scores.get((row * lists + list) * budget + slot);
        if (!std::isnan(score)) sum += score;
      }
      ASSERT_NEAR(sum, found.list.get((row * lists + list) * budget) < 0 ? 0.0 : 4.0, 1e-5) << "row " << row;
    }
  }
}

TEST(DiagnoseChecks, NameWhatIsWrong) {
  TestContext context;
  const Problem problem(cases::case_named("packed"));
  Found found = diagnose_problem(context, cpu_backend(), problem);
  const auto refuses = [&](Diagnosis diagnosis) {
    EXPECT_THROW(diagnose(context, cpu_backend(), problem.options, problem.q.view(), problem.k.view(), problem.batch(),
                          diagnosis),
                 Error);
  };
  Diagnosis bad = found.diagnosis;
  bad.mass = TensorView();
  refuses(bad);
  bad = found.diagnosis;
  bad.scores = TensorView();
  refuses(bad);
  bad = found.diagnosis;
  bad.mass.shape[0] = 3;
  refuses(bad);
  bad = found.diagnosis;
  bad.selection.blocks.data = nullptr;
  refuses(bad);
}

}  // namespace
}  // namespace moba::test
