// The CPU backend against the reference in double precision, on one random case.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "cases/compare.h"
#include "cases/dense.h"
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

/// Each list is ascending, from the past, as long as it can be, and holds the best by the scores in double precision:
/// one that is left out may beat one that is in by no more than the roundings of two float32 scores.
void expect_best_blocks(TestContext& lent, const Problem& problem, const Choice& choice) {
  const std::int64_t block_size = problem.options.block_size, dim = problem.head_dim(), heads = problem.heads();
  const std::int64_t kv_heads = problem.kv_heads(), budget = choice.selection.budget();
  HostTensor pooled(problem.k.dtype(),
                    {block_rows(problem.keys(), problem.batch().sequences(), block_size), kv_heads, dim});
  pooled.fill(std::vector<double>(static_cast<std::size_t>(pooled.numel()), 0.0));
  pool(lent, reference_backend(), {problem.k.view(), problem.batch(), block_size, pooled.view()});
  const std::vector<double> q = problem.q.values(), r = pooled.values();
  const std::vector<double> q_offsets = problem.cu_seqlens_q.values(), k_offsets = problem.cu_seqlens_k.values();
  std::vector<double> scores, sizes;
  std::vector<char> chosen;
  for (std::size_t s = 0; s + 1 < q_offsets.size(); ++s) {
    const std::int64_t end = static_cast<std::int64_t>(q_offsets[s + 1]);
    const std::int64_t first_row = static_cast<std::int64_t>(k_offsets[s]) / block_size + static_cast<std::int64_t>(s);
    for (std::int64_t row = static_cast<std::int64_t>(q_offsets[s]); row < end; ++row) {
      const std::int64_t position = static_cast<std::int64_t>(k_offsets[s + 1] - k_offsets[s]) - (end - row);
      const std::int64_t past = position < 0 ? 0 : position / block_size, count = std::min(budget, past);
      scores.assign(static_cast<std::size_t>(past), 0.0);
      sizes.assign(static_cast<std::size_t>(past), 0.0);
      for (std::int64_t head = 0; head < heads; ++head) {
        for (std::int64_t block = 0; block < past; ++block) {
          const double* query = q.data() + (row * heads + head) * dim;
          const double* key = r.data() + ((first_row + block) * kv_heads + head / (heads / kv_heads)) * dim;
          double sum = 0.0, size = 0.0;
          for (std::int64_t d = 0; d < dim; ++d) {
            sum += query[d] * key[d];
            size += std::fabs(query[d] * key[d]);
          }
          scores[static_cast<std::size_t>(block)] = sum;
          sizes[static_cast<std::size_t>(block)] = static_cast<double>(dim) * 0x1p-24 * size;
        }
        const std::int32_t* list = choice.list.view().as<std::int32_t>() + (row * heads + head) * budget;
        chosen.assign(static_cast<std::size_t>(past), 0);
        double worst = std::numeric_limits<double>::infinity();  // what a chosen block can at best have been scored
        for (std::int64_t slot = 0; slot < budget; ++slot) {
          if (slot >= count) {
            ASSERT_EQ(list[slot], -1) << "row " << row << " head " << head << " slot " << slot;
            continue;
          }
          ASSERT_GE(list[slot], slot == 0 ? 0 : list[slot - 1] + 1) << "row " << row << " head " << head;
          ASSERT_LT(list[slot], past) << "row " << row << " head " << head;
          const std::size_t block = static_cast<std::size_t>(list[slot]);
          chosen[block] = 1;
          worst = std::min(worst, scores[block] + sizes[block]);
        }
        for (std::size_t block = 0; block < scores.size(); ++block) {
          ASSERT_TRUE(chosen[block] || scores[block] - sizes[block] <= worst)
              << "row " << row << " head " << head << " leaves out block " << block;
        }
      }
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
    if (choice.selection.kind == SelectionKind::kList) expect_best_blocks(lent, problem, choice);
  }
  Results results;
  with_workspace(c, lent, [&] { results = cases::run(lent, cpu_backend(), lent_problem, choice.selection); });
  EXPECT_EQ(lent.error_bits, 0);

  TestContext own;
  const Results exact = cases::run(own, reference_backend(), problem.to(DType::kFloat64), choice.selection);
  return expect_close(problem, choice.selection, results, exact);
}

}  // namespace moba::test
