// attend and attend_backward of every backend on every case of the table, by the 2x-error rule.
#include <cmath>

#include "cases/compare.h"
#include "cases/dense.h"
#include "core/support.h"
#include "dtype.h"

namespace moba::test {
namespace {

using cases::Case;
using cases::Problem;
using cases::Results;

TEST_P(CaseTest, AttendIsWithinTwiceTheErrorOfDense) {
  const Problem problem(problem_case());
  TestContext oracle;
  const cases::Choice choice = cases::choose(oracle, reference_backend(), problem);
  const Results result = cases::run(context, backend(), problem, choice.selection);
  const cases::Mask mask(problem, choice.selection);
  cases::expect_within_twice(result, cases::dense_same_precision(problem, mask), cases::dense_exact(problem, mask));
  EXPECT_EQ(context.error_bits, 0);
}

INSTANTIATE_TEST_SUITE_P(All, CaseTest,
                         ::testing::Combine(::testing::ValuesIn(backends()), ::testing::ValuesIn(cases::all_cases())),
                         case_name);

class ReferenceTest : public ::testing::TestWithParam<Case> {};

// The oracle itself against the definition, in double precision throughout.
TEST_P(ReferenceTest, EqualsTheMaskedSoftmax) {
  const Problem problem = Problem(GetParam()).to(DType::kFloat64);
  TestContext context(2);
  const cases::Choice choice = cases::choose(context, reference_backend(), problem);
  const Results result = cases::run(context, reference_backend(), problem, choice.selection);
  const Results exact = cases::dense_exact(problem, cases::Mask(problem, choice.selection));
  EXPECT_TRUE(cases::is_close(result.out, exact.out, 1e-12));
  EXPECT_TRUE(cases::is_close(result.lse, exact.lse, 1e-12));
  EXPECT_TRUE(cases::is_close(result.dq, exact.dq, 1e-11));
  EXPECT_TRUE(cases::is_close(result.dk, exact.dk, 1e-11));
  EXPECT_TRUE(cases::is_close(result.dv, exact.dv, 1e-11));
}

std::vector<Case> float32_cases() {
  std::vector<Case> result;
  for (const Case& c : cases::all_cases()) {
    if (c.dtype == DType::kFloat32) result.push_back(c);
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(All, ReferenceTest, ::testing::ValuesIn(float32_cases()), test::name_of_case);

/// sum(out * dout) + sum(lse * dlse), a function whose gradients attend_backward gives.
double loss(const Problem& problem, const Selection& selection) {
  SerialContext context;
  const Results r = cases::run(context, reference_backend(), problem, selection, false);
  double sum = 0.0;
  for (std::int64_t i = 0; i < r.out.numel(); ++i) sum += r.out.get(i) * problem.dout.get(i);
  for (std::int64_t i = 0; i < r.lse.numel(); ++i) {
    if (std::isfinite(r.lse.get(i))) sum += r.lse.get(i) * problem.dlse.get(i);
  }
  return sum;
}

class FiniteDifferences : public ::testing::TestWithParam<Case> {};

TEST_P(FiniteDifferences, OfTheReference) {
  Problem problem = Problem(GetParam()).to(DType::kFloat64);
  SerialContext context;
  const cases::Choice choice = cases::choose(context, reference_backend(), problem);
  const Results r = cases::run(context, reference_backend(), problem, choice.selection);
  constexpr double kStep = 1e-5;
  const auto expect_gradient = [&](cases::HostTensor& input, const cases::HostTensor& gradient, const char* name) {
    for (std::int64_t i = 0; i < input.numel(); ++i) {
      const double value = input.get(i);
      input.set(i, value + kStep);
      const double above = loss(problem, choice.selection);
      input.set(i, value - kStep);
      const double below = loss(problem, choice.selection);
      input.set(i, value);
      ASSERT_NEAR(gradient.get(i), (above - below) / (2 * kStep), 2e-8 * std::max(1.0, std::fabs(gradient.get(i))))
          << name << "[" << i << "]";
    }
  };
  expect_gradient(problem.q, r.dq, "q");
  expect_gradient(problem.k, r.dk, "k");
  expect_gradient(problem.v, r.dv, "v");
}

std::vector<Case> small_cases() {
  Case base;
  base.heads = 4;
  base.kv_heads = 2;
  base.head_dim = 8;
  base.value_dim = 9;
  base.options.block_size = 3;
  base.options.top_k = 3;
  base.q_lengths = {11, 0, 5};
  base.k_lengths = {13, 2, 4};
  std::vector<Case> result;
  const auto add = [&](const char* name, Kind kind, std::int64_t top_k) {
    Case c = base;
    c.name = name;
    c.options.kind = kind;
    c.options.top_k = top_k;
    c.options.window = 4;
    c.options.sink = 2;
    result.push_back(c);
  };
  add("full", Kind::kFull, 3);
  add("moba", Kind::kMoba, 3);
  add("own_block", Kind::kMoba, 1);
  add("window", Kind::kWindow, 3);
  return result;
}

INSTANTIATE_TEST_SUITE_P(All, FiniteDifferences, ::testing::ValuesIn(small_cases()), test::name_of_case);

class AttendTest : public BackendTest {};

// Tensors as views of larger ones must give the bits of contiguous ones.
TEST_P(AttendTest, StridesDoNotChangeBits) {
  for (const char* name : {"mixed_lengths", "dims_96_33", "window_with_sink", "full", "group_of_8"}) {
    for (DType dtype : dtypes()) {
      const Problem problem(cases::case_named(name, dtype));
      const Problem strided = problem.to(dtype, cases::Layout::kStrided);
      const Results a = cases::run(context, backend(), problem);
      const Results b = cases::run(context, backend(), strided);
      EXPECT_TRUE(cases::same_bits(a.out, b.out)) << name;
      EXPECT_TRUE(cases::same_bits(a.lse, b.lse)) << name;
      EXPECT_TRUE(cases::same_bits(a.dq, b.dq)) << name;
      EXPECT_TRUE(cases::same_bits(a.dk, b.dk)) << name;
      EXPECT_TRUE(cases::same_bits(a.dv, b.dv)) << name;
    }
  }
}

// An absent dlse is a dlse of zeros.
TEST_P(AttendTest, AbsentGradientOfLseIsZero) {
  Problem problem(cases::case_named("mixed_lengths"));
  const cases::Choice choice = cases::choose(context, backend(), problem);
  problem.dlse.fill(std::vector<double>(static_cast<std::size_t>(problem.dlse.numel()), 0.0));
  const Results zeros = cases::run(context, backend(), problem, choice.selection);
  problem.dlse = cases::HostTensor();
  const Results absent = cases::run(context, backend(), problem, choice.selection);
  EXPECT_EQ(cases::max_error(absent.dq, zeros.dq), 0.0);
  EXPECT_EQ(cases::max_error(absent.dk, zeros.dk), 0.0);
  EXPECT_EQ(cases::max_error(absent.dv, zeros.dv), 0.0);
}

INSTANTIATE_TEST_SUITE_P(All, AttendTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace moba::test
