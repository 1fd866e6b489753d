// Random problems: shapes, lengths, options, dtypes and lists that nobody thought of.
#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <sstream>

#include "cases/compare.h"
#include "cases/dense.h"
#include "core/property_case.h"
#include "core/support.h"

namespace moba::test {
namespace {

using cases::Case;
using cases::HostTensor;
using cases::Problem;

/// So many cases that the tests of the repository run 10,000 or more; MOBA_PROPERTY_PERCENT shortens them where each
/// takes many times as long (sanitizers, emulation).
std::uint64_t share_of(std::uint64_t cases) {
  const char* percent = std::getenv("MOBA_PROPERTY_PERCENT");
  return percent == nullptr ? cases : std::max<std::uint64_t>(1, cases * std::strtoull(percent, nullptr, 10) / 100);
}

constexpr Limits kSmall{60, 40};
constexpr std::uint64_t kAgreementCases = 10'000;
constexpr int kShards = 20;  // for ctest to run beside each other

std::string trace_of(const RandomCase& c) {
  return "seed " + std::to_string(c.problem.seed) + ": " + c.describe();
}

class AgreementTest : public ::testing::TestWithParam<int> {};

TEST_P(AgreementTest, CpuIsWithinTwiceTheErrorOfDenseFromTheReference) {
  const std::uint64_t count = share_of(kAgreementCases) / kShards,
                      first = static_cast<std::uint64_t>(GetParam()) * count;
  int decided = 0;
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    const RandomCase c = random_case(seed);
    SCOPED_TRACE(trace_of(c));
    decided += expect_agreement(c);
    if (HasFailure()) return;
  }
  // The bounds are for what dense is lucky with, and must stay the exception.
  EXPECT_LE(static_cast<std::uint64_t>(decided), 1 + count / 20);
  RecordProperty("decided_by_bounds", decided);
  std::cout << count << " cases agree; of their " << 5 * count << " tensors the rounding bounds decided on " << decided
            << "\n";
}

INSTANTIATE_TEST_SUITE_P(Shard, AgreementTest, ::testing::Range(0, kShards));

TEST(AgreementCoverage, EveryPairOfFeaturesOccursAndHalfTheChoicesAreReal) {
  PairCoverage coverage;
  std::int64_t sparse = 0, longest = 0;
  for (std::uint64_t seed = 0; seed < kAgreementCases; ++seed) {
    const RandomCase c = random_case(seed);
    coverage.count(c);
    sparse += c.is_sparse();
    longest = std::max(longest, c.longest());
  }
  const PairCoverage::Summary summary = coverage.summary();
  std::cout << kAgreementCases << " cases, " << sparse << " of them with more than 2k blocks; longest sequence "
            << longest << "\n"
            << summary.text << summary.pairs << " pairs of features, " << summary.missing << " never hit; the rarest, "
            << summary.rarest << ", " << summary.least << " times\n";
  EXPECT_EQ(summary.missing, 0);
  EXPECT_GE(2 * sparse, static_cast<std::int64_t>(kAgreementCases));
  EXPECT_GE(longest, 2000);
}

/// Small problems of many rows for their size, so that the error of dense is no matter of luck.
Case small_case(std::uint64_t seed) {
  Chance chance(seed);
  Case c;
  c.seed = seed;
  c.dtype = dtypes()[static_cast<std::size_t>(chance.between(0, 2))];
  c.options.kind = static_cast<Kind>(chance.one_in(2) ? 2 : chance.between(0, 1));
  c.options.block_size = chance.one_in(4) ? chance.between(1, 4) : chance.between(1, 40);
  c.options.top_k = chance.between(1, 6);
  c.options.window = chance.between(1, 50);
  c.options.sink = chance.one_in(2) ? 0 : chance.between(0, 20);
  c.options.softmax_scale = chance.one_in(4) ? 0.05 * static_cast<double>(chance.between(1, 20)) : 0.0;
  c.kv_heads = chance.between(1, 3);
  c.heads = c.kv_heads * chance.between(1, 4);
  c.head_dim = chance.between(8, 40);
  c.value_dim = chance.between(8, 40);
  const std::int64_t sequences = chance.between(1, 4);
  for (std::int64_t s = 0; s < sequences; ++s) {
    const std::int64_t k_length = chance.one_in(6) ? 0 : chance.between(1, 60);
    c.k_lengths.push_back(k_length);
    c.q_lengths.push_back(chance.one_in(2) ? k_length : chance.one_in(6) ? 0 : chance.between(1, 60));
  }
  c.data = chance.one_in(4) ? cases::Data::kEqualKeys : cases::Data::kNormal;
  return c;
}

std::string describe(const Case& c) {
  std::ostringstream text;
  text << name_of(c.dtype) << " " << name_of(c.options.kind) << " B " << c.options.block_size << " k "
       << c.options.top_k << " scale " << c.options.softmax_scale << " data " << static_cast<int>(c.data) << " window "
       << c.options.window << " sink " << c.options.sink << " H " << c.heads << " HK " << c.kv_heads << " D "
       << c.head_dim << " Dv " << c.value_dim << " q";
  for (std::int64_t length : c.q_lengths) text << " " << length;
  text << " k";
  for (std::int64_t length : c.k_lengths) text << " " << length;
  return text.str();
}

class PropertyTest : public BackendTest {};

TEST_P(PropertyTest, RandomProblemsAreWithinTwiceTheErrorOfDense) {
  for (std::uint64_t seed = 0; seed < share_of(900); ++seed) {
    const Case c = small_case(seed);
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(c));
    const Problem problem(c);
    TestContext lent(1 + static_cast<int>(seed % 3));
    const cases::Choice choice = cases::choose(lent, backend(), problem);
    const cases::Results r = cases::run(lent, backend(), problem, choice.selection);
    const cases::Mask mask(problem, choice.selection);
    cases::expect_within_twice(r, cases::dense_same_precision(problem, mask), cases::dense_exact(problem, mask), 2.0);
    ASSERT_EQ(lent.error_bits, 0);
    if (HasFailure()) return;
  }
}

// Scores of hundreds: a float32 score is then off by 1e-5 and more, and so are probabilities; but nothing overflows,
// and the largest scores win.
TEST_P(PropertyTest, ExtremeScoresStayAccurate) {
  for (std::uint64_t seed = 3000; seed < 3000 + share_of(300); ++seed) {
    Case c = small_case(seed);
    c.data = seed % 2 == 0 ? cases::Data::kHugeKey : cases::Data::kLarge;
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(c));
    const Problem problem(c);
    TestContext lent;
    const cases::Choice choice = cases::choose(lent, backend(), problem);
    const cases::Results r = cases::run(lent, backend(), problem, choice.selection);
    const cases::Results exact = cases::dense_exact(problem, cases::Mask(problem, choice.selection));
    const double unit = c.dtype == DType::kBFloat16 ? 0x1p-8 : c.dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-13;
    ASSERT_TRUE(cases::is_close(r.out, exact.out, 3 * unit));
    ASSERT_TRUE(cases::is_close(r.lse, exact.lse, 1e-6));
    ASSERT_TRUE(cases::is_close(r.dv, exact.dv, 4 * unit));
    for (const HostTensor* gradient : {&r.dq, &r.dk}) {
      for (double x : gradient->values()) ASSERT_TRUE(std::isfinite(x));
    }
  }
}

// Lists that no selector would make: any ascending set of past blocks, with H, HK or 1 selection heads.
TEST_P(PropertyTest, AnyListIsObeyed) {
  for (std::uint64_t seed = 1000; seed < 1000 + share_of(400); ++seed) {
    Case c = small_case(seed);
    c.options.kind = Kind::kMoba;
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(c));
    const Problem problem(c);
    Chance chance(seed);
    const std::int64_t shares[] = {c.heads, c.kv_heads, 1};
    const HostTensor list = random_list(problem, shares[chance.between(0, 2)], chance.between(0, 7), seed);
    Selection selection;
    selection.kind = SelectionKind::kList;
    selection.block_size = c.options.block_size;
    selection.blocks = list.view();
    TestContext lent(2);
    const cases::Results r = cases::run(lent, backend(), problem, selection);
    const cases::Mask mask(problem, selection);
    cases::expect_within_twice(r, cases::dense_same_precision(problem, mask), cases::dense_exact(problem, mask), 2.0);
    ASSERT_EQ(lent.error_bits, 0);
    if (HasFailure()) return;
  }
}

// Whatever integers stand in cu_seqlens and lists, nothing outside the tensors is touched (run under a sanitizer, this
// is a test of memory), every output is written, and what lies between is finite.
TEST_P(PropertyTest, GarbageInDeviceValuesIsHarmless) {
  for (std::uint64_t seed = 2000; seed < 2000 + share_of(600); ++seed) {
    const RandomCase c = random_case(seed, kSmall);
    SCOPED_TRACE(trace_of(c));
    Problem problem = make_problem(c);
    Chance chance(seed);
    const auto garble = [&](HostTensor& tensor, std::int64_t plausible) {
      for (std::int64_t i = 0; i < tensor.numel(); ++i) {
        const std::int64_t extreme[] = {-1, -2147483648, 2147483647, 0};
        if (chance.one_in(3)) {
          tensor.set(i, static_cast<double>(chance.one_in(2) ? extreme[chance.between(0, 3)]
                                                             : chance.between(-3, plausible + 3)));
        }
      }
    };
    garble(problem.cu_seqlens_q, problem.rows());
    garble(problem.cu_seqlens_k, problem.keys());
    problem.max_seqlen_q = chance.between(1, 100);
    problem.max_seqlen_k = chance.between(1, 100);
    TestContext lent(c.threads);
    const cases::Choice choice = cases::choose(lent, backend(), problem);
    if (choice.selection.kind == SelectionKind::kList) {
      HostTensor list = choice.list;
      garble(list, 10);
      Selection selection = choice.selection;
      selection.blocks = list.view();
      const cases::Results r = cases::run(lent, backend(), problem, selection);
      for (double x : r.out.values()) ASSERT_TRUE(std::isfinite(x));
      for (const HostTensor* gradient : {&r.dq, &r.dk, &r.dv}) {
        for (double x : gradient->values()) ASSERT_TRUE(std::isfinite(x));
      }
      HostTensor offsets(
          DType::kInt64,
          {list.view().shape[1] * block_rows(problem.keys(), problem.batch().sequences(), selection.block_size) + 1});
      HostTensor entries(DType::kInt32, {list.numel(), 2});
      invert(lent, backend(),
             {problem.batch(), selection, problem.rows(), problem.keys(), {offsets.view(), entries.view()}});
      for (std::int64_t i = 1; i < offsets.numel(); ++i) ASSERT_GE(offsets.get(i), offsets.get(i - 1));
    } else {
      const cases::Results r = cases::run(lent, backend(), problem, choice.selection);
      for (double x : r.out.values()) ASSERT_TRUE(std::isfinite(x));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, PropertyTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace moba::test
