// Random problems: shapes, lengths, options, dtypes and lists that nobody thought of.
#include <algorithm>
#include <random>
#include <sstream>

#include "cases/compare.h"
#include "cases/dense.h"
#include "core/support.h"
#include "dtype.h"

namespace moba::test {
namespace {

using cases::Case;
using cases::HostTensor;
using cases::Problem;

class Chance {
 public:
  explicit Chance(std::uint64_t seed) : random_(seed) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }
  bool one_in(std::int64_t n) { return between(1, n) == 1; }

 private:
  std::mt19937_64 random_;
};

Case random_case(std::uint64_t seed) {
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
  for (std::uint64_t seed = 0; seed < 900; ++seed) {
    const Case c = random_case(seed);
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
  for (std::uint64_t seed = 3000; seed < 3300; ++seed) {
    Case c = random_case(seed);
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
  for (std::uint64_t seed = 1000; seed < 1400; ++seed) {
    Case c = random_case(seed);
    c.options.kind = Kind::kMoba;
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(c));
    const Problem problem(c);
    Chance chance(seed);
    const std::int64_t shares[] = {c.heads, c.kv_heads, 1};
    const std::int64_t selection_heads = shares[chance.between(0, 2)], budget = chance.between(0, 7);
    HostTensor list(DType::kInt32, {problem.rows(), selection_heads, budget});
    std::int64_t row = 0, at = 0;
    for (std::size_t s = 0; s < c.q_lengths.size(); ++s) {
      for (std::int64_t r = 0; r < c.q_lengths[s]; ++r, ++row) {
        const std::int64_t position = r + c.k_lengths[s] - c.q_lengths[s];
        const std::int64_t past = position < 0 ? 0 : position / c.options.block_size;
        for (std::int64_t g = 0; g < selection_heads; ++g) {
          std::vector<std::int64_t> chosen;
          for (std::int64_t block = 0; block < past; ++block) {
            if (static_cast<std::int64_t>(chosen.size()) < budget && chance.one_in(3)) chosen.push_back(block);
          }
          chosen.resize(static_cast<std::size_t>(budget), -1);
          for (std::int64_t block : chosen) list.set(at++, static_cast<double>(block));
        }
      }
    }
    Selection selection;
    selection.kind = SelectionKind::kList;
    selection.block_size = c.options.block_size;
    selection.blocks = list.view();
    TestContext lent(1 + static_cast<int>(seed % 3));
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
  for (std::uint64_t seed = 2000; seed < 2600; ++seed) {
    const Case c = random_case(seed);
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(c));
    Problem problem(c);
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
    TestContext lent(1 + static_cast<int>(seed % 3));
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
