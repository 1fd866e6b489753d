// The CPU backend against the reference in double precision, on one random case.
#include <cmath>
#include <optional>

#include "cases/compare.h"
#include "cases/dense.h"
#include "core/best_blocks.h"
#include "core/property_case.h"
#include "core/support.h"

namespace moba::test {
namespace {

using cases::Choice;
using cases::HostTensor;
using cases::Problem;
using cases::Results;

/// Runs the work; where the workspace is tight, from a limit that is too small, doubled until it is enough.
template <class Work>
void with_workspace(const RandomCase& c, TestContext& lent, const Work& work) {
  if (c.tight_workspace) lent.limit = 1 << 10;
  for (;;) {
    try {
      return work();
    } catch (const Error& error) {
      if (!c.tight_workspace || error.code() != ErrorCode::kWorkspace || lent.limit > std::int64_t{1} << 32) throw;
      lent.limit *= 2;
    }
  }
}

bool within(const HostTensor& result, const HostTensor& exact, const HostTensor& bound) {
  const std::vector<double> x = result.values(), y = exact.values(), most = bound.values();
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (x[i] != y[i] && !(std::fabs(x[i] - y[i]) <= most[i])) return false;
  }
  return true;
}

/// By the 2x-error rule as cases::expect_within_twice has it, or by the bounds.
int expect_close(const Problem& problem, const Selection& selection, const Results& r, const Results& exact) {
  constexpr double kRoundings = 4.0, kSpared = 2.0;
  const cases::Mask mask(problem, selection);
  const Results dense = cases::dense_same_precision(problem, mask);
  const double gradient_roundings = kRoundings + cases::max_size(exact.lse);
  std::optional<Results> bounds;
  int decided = 0;
  const auto expect = [&](const char* name, HostTensor Results::*tensor, double roundings) {
    const auto verdict = cases::within_twice(r.*tensor, dense.*tensor, exact.*tensor, roundings, kSpared);
    if (verdict) return;
    if (!bounds) bounds = rounding_bounds(problem, mask, exact);
    ++decided;
    EXPECT_TRUE(within(r.*tensor, exact.*tensor, (*bounds).*tensor)) << name << ": " << verdict.message();
  };
  expect("out", &Results::out, kRoundings);
  expect("lse", &Results::lse, kRoundings);
  expect("dq", &Results::dq, gradient_roundings);
  expect("dk", &Results::dk, gradient_roundings);
  expect("dv", &Results::dv, gradient_roundings);
  return decided;
}

}  // namespace

int expect_agreement(const RandomCase& c) {
  const Problem problem = make_problem(c);
  Problem lent_problem = problem;
  if (!c.has_dlse) lent_problem.dlse = HostTensor();
  TestContext lent(c.threads);
  Choice choice;
  if (c.method == Method::kAnyList) {
    choice.list = random_list(problem, c.selection_heads, c.problem.options.top_k - 1, c.problem.seed);
    choice.selection.kind = SelectionKind::kList;
    choice.selection.block_size = c.problem.options.block_size;
    choice.selection.blocks = choice.list.view();
  } else {
    with_workspace(c, lent, [&] { choice = cases::choose(lent, cpu_backend(), problem); });
    if (choice.selection.kind == SelectionKind::kList) expect_best_blocks(problem, choice);
  }
  Results results;
  with_workspace(c, lent, [&] { results = cases::run(lent, cpu_backend(), lent_problem, choice.selection); });
  EXPECT_EQ(lent.error_bits, 0);

  TestContext own;
  const Results exact = cases::run(own, reference_backend(), problem.to(DType::kFloat64), choice.selection);
  return expect_close(problem, choice.selection, results, exact);
}

}  // namespace moba::test
