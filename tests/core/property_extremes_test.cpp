// Values and options at the ends of their ranges: right, or refused by name.
#include <cmath>
#include <limits>

#include "cases/compare.h"
#include "cases/dense.h"
#include "core/property_case.h"
#include "core/support.h"
#include "dtype.h"

namespace moba::test {
namespace {

using cases::HostTensor;
using cases::Problem;
using cases::Results;

double largest(DType dtype) {
  if (dtype == DType::kFloat16) return 65504.0;
  return dtype == DType::kBFloat16 ? 0x1.fep127 : 0x1.fffffep127;
}

/// The options of every kind of choice, on sequences of some tens of keys.
std::vector<AttentionOptions> kinds_of_choice() {
  AttentionOptions full, window, moba;
  full.kind = Kind::kFull;
  window.kind = Kind::kWindow;
  window.window = 7;
  window.sink = 3;
  moba.block_size = 8;
  return {full, window, moba};
}

Problem small_problem(DType dtype, const AttentionOptions& options, std::uint64_t seed = 11) {
  cases::Case c;
  c.dtype = dtype;
  c.options = options;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 24;
  c.value_dim = 17;
  c.q_lengths = c.k_lengths = {61, 20};
  c.seed = seed;
  return Problem(c);
}

void scale_by(HostTensor& tensor, double factor) {
  for (std::int64_t i = 0; i < tensor.numel(); ++i) tensor.set(i, factor * tensor.get(i));
}

class ExtremesTest : public BackendTest {
 protected:
  /// Runs every kind of choice in every dtype on the problem that `change` makes; `judge` gets the results of the
  /// backend and those of the reference in double precision for the same choice.
  template <class Change, class Judge>
  void each(const Change& change, const Judge& judge) {
    for (DType dtype : dtypes()) {
      for (const AttentionOptions& options : kinds_of_choice()) {
        SCOPED_TRACE(std::string(name_of(dtype)) + " " + name_of(options.kind));
        Problem problem = small_problem(dtype, options);
        change(problem);
        const cases::Choice choice = cases::choose(context, backend(), problem);
        const Results r = cases::run(context, backend(), problem, choice.selection);
        const Results exact = cases::run(context, reference_backend(), problem.to(DType::kFloat64), choice.selection);
        judge(problem, r, exact);
      }
    }
  }
};

void expect_finite(const HostTensor& tensor, const char* name) {
  for (double x : tensor.values()) ASSERT_TRUE(std::isfinite(x)) << name;
}

// Every key the same, and every query: all scores tie, out is the mean of the values that a row sees.
TEST_P(ExtremesTest, EqualKeysAndQueries) {
  each(
      [](Problem& p) {
        p.q.fill(std::vector<double>(static_cast<std::size_t>(p.q.numel()), 0.5));
        p.k.fill(std::vector<double>(static_cast<std::size_t>(p.k.numel()), -1.25));
      },
      [](const Problem& p, const Results& r, const Results& exact) {
        const double unit = p.q.dtype() == DType::kBFloat16  ? 0x1p-8
                            : p.q.dtype() == DType::kFloat16 ? 0x1p-11
                                                             : 0x1p-20;
        EXPECT_TRUE(cases::is_close(r.out, exact.out, 3 * unit));
        EXPECT_TRUE(cases::is_close(r.lse, exact.lse, 1e-6));
        EXPECT_TRUE(cases::is_close(r.dv, exact.dv, 6 * unit));
      });
}

// Queries and keys so large that a score is near the largest float32: the softmax is a maximum, and out a value.
TEST_P(ExtremesTest, ScoresNearTheLargestFloatPickOneValue) {
  each(
      [](Problem& p) {
        const double most = largest(p.q.dtype());
        const double size = std::min(most / 8, std::sqrt(0x1p127 / 24.0) / 8);
        scale_by(p.q, size);
        scale_by(p.k, size);
      },
      [](const Problem& p, const Results& r, const Results& exact) {
        expect_finite(r.out, "out");
        const double unit = p.q.dtype() == DType::kBFloat16  ? 0x1p-8
                            : p.q.dtype() == DType::kFloat16 ? 0x1p-11
                                                             : 0x1p-20;
        EXPECT_TRUE(cases::is_close(r.out, exact.out, unit));
        for (std::int64_t i = 0; i < r.lse.numel(); ++i) {
          ASSERT_NEAR(r.lse.get(i), exact.lse.get(i), 1e-5 * std::fabs(exact.lse.get(i)) + 0x1p100);
        }
      });
}

// Values at the largest number of the dtype divided by the keys that a row may see: sums are float32 and reach no
// further. For float16 that is no limit: its largest number is far from the largest float32.
TEST_P(ExtremesTest, ValuesNearTheLimit) {
  each(
      [](Problem& p) {
        const double most = p.v.dtype() == DType::kFloat16 ? largest(p.v.dtype()) : largest(p.v.dtype()) / 64;
        for (std::int64_t i = 0; i < p.v.numel(); ++i) p.v.set(i, i % 3 == 0 ? -most : most);
        scale_by(p.dout, 0x1p-126);  // the products with these values are then of usual size
      },
      [](const Problem& p, const Results& r, const Results& exact) {
        expect_finite(r.out, "out");
        const double unit = p.q.dtype() == DType::kBFloat16  ? 0x1p-8
                            : p.q.dtype() == DType::kFloat16 ? 0x1p-11
                                                             : 0x1p-20;
        EXPECT_LE(cases::max_error(r.out, exact.out), 3 * unit * cases::max_size(p.v));
      });
}

// Numbers below the smallest normal one. float16 has them all in float32's normal range and must be exact; those of
// bfloat16 and float32 may count as zero (hardware bfloat16 products do so), never as anything else.
TEST_P(ExtremesTest, Denormals) {
  each(
      [](Problem& p) {
        const double size = p.q.dtype() == DType::kFloat16 ? 0x1p-20 : 0x1p-130;
        for (HostTensor* tensor : {&p.q, &p.k, &p.v}) scale_by(*tensor, size);
      },
      [](const Problem& p, const Results& r, const Results& exact) {
        const bool half = p.q.dtype() == DType::kFloat16;
        EXPECT_LE(cases::max_error(r.out, exact.out), half ? 0x1p-24 : 0x1p-126);
        EXPECT_TRUE(cases::is_close(r.lse, exact.lse, 1e-6));
        for (const HostTensor* gradient : {&r.dq, &r.dk, &r.dv}) expect_finite(*gradient, "a gradient");
        const double unit = p.q.dtype() == DType::kBFloat16 ? 0x1p-8 : half ? 0x1p-11 : 0x1p-20;
        EXPECT_TRUE(cases::is_close(r.dv, exact.dv, 4 * unit));
      });
}

// What is not finite in the reference is not finite here, and nothing else: NaN and both infinities in q, k or v.
TEST_P(ExtremesTest, InfinitiesAndNaNsSpoilWhatTheySpoilInTheReference) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (double bad : {kInfinity, -kInfinity, std::nan("")}) {
    for (HostTensor Problem::*tensor : {&Problem::q, &Problem::k, &Problem::v}) {
      SCOPED_TRACE(std::to_string(bad) + " in " + (tensor == &Problem::q ? "q" : tensor == &Problem::k ? "k" : "v"));
      each(
          [&](Problem& p) {
            HostTensor& spoiled = p.*tensor;
            Chance chance(5);
            for (int i = 0; i < 6; ++i) spoiled.set(chance.between(0, spoiled.numel() - 1), bad);
          },
          [](const Problem&, const Results& r, const Results& exact) {
            for (std::int64_t i = 0; i < r.out.numel(); ++i) {
              ASSERT_EQ(std::isfinite(r.out.get(i)), std::isfinite(exact.out.get(i))) << "out " << i;
              ASSERT_EQ(std::isnan(r.out.get(i)), std::isnan(exact.out.get(i))) << "out " << i;
            }
            for (std::int64_t i = 0; i < r.lse.numel(); ++i) {
              ASSERT_EQ(std::isnan(r.lse.get(i)), std::isnan(exact.lse.get(i))) << "lse " << i;
            }
          });
    }
  }
}

// Rows that see nothing but sink tokens and themselves; a window without a row's own key is refused by name.
TEST_P(ExtremesTest, SinkOnlyChoices) {
  AttentionOptions options;
  options.kind = Kind::kWindow;
  options.window = 1;
  for (std::int64_t sink : {std::int64_t{1}, std::int64_t{4}, std::int64_t{1000}}) {
    options.sink = sink;
    for (DType dtype : dtypes()) {
      SCOPED_TRACE(std::string(name_of(dtype)) + " sink " + std::to_string(sink));
      const Problem problem = small_problem(dtype, options);
      const cases::Choice choice = cases::choose(context, backend(), problem);
      const Results r = cases::run(context, backend(), problem, choice.selection);
      const cases::Mask mask(problem, choice.selection);
      cases::expect_within_twice(r, cases::dense_same_precision(problem, mask), cases::dense_exact(problem, mask), 2.0);
    }
  }
  options.window = 0;
  try {
    plan_selection(options, 8, 2, 2);
    FAIL() << "a window of 0 keys was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find("window is 0"), std::string::npos) << error.what();
  }
}

// A list that holds the first block for every row: the other way to have a sink.
TEST_P(ExtremesTest, FirstBlockOnlyLists) {
  AttentionOptions options;
  options.block_size = 5;
  options.top_k = 2;
  for (DType dtype : dtypes()) {
    SCOPED_TRACE(name_of(dtype));
    const Problem problem = small_problem(dtype, options);
    HostTensor list(DType::kInt32, {problem.rows(), 1, 1});
    for (std::int64_t row = 0; row < problem.rows(); ++row) {
      const std::int64_t position = row < 61 ? row : row - 61;
      list.set(row, position < options.block_size ? -1.0 : 0.0);
    }
    Selection selection;
    selection.kind = SelectionKind::kList;
    selection.block_size = options.block_size;
    selection.blocks = list.view();
    const Results r = cases::run(context, backend(), problem, selection);
    const cases::Mask mask(problem, selection);
    cases::expect_within_twice(r, cases::dense_same_precision(problem, mask), cases::dense_exact(problem, mask), 2.0);
    EXPECT_EQ(context.error_bits, 0);
  }
}

// Options near 2^63 are large, nothing more: no sum of them overflows.
TEST_P(ExtremesTest, OptionsNearTheLargestNumberAreFullAttention) {
  constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();
  AttentionOptions full;
  full.kind = Kind::kFull;
  std::vector<AttentionOptions> same(5);
  same[0].block_size = kLargest;
  same[1].block_size = kLargest;
  same[1].top_k = kLargest;
  same[2].block_size = 8;
  same[2].top_k = kLargest;
  same[3].kind = same[4].kind = Kind::kWindow;
  same[3].window = same[3].sink = kLargest;
  same[4].window = 1;
  same[4].sink = kLargest;
  Problem problem = small_problem(DType::kFloat32, full);
  const Results expected = cases::run(context, backend(), problem);
  for (std::size_t i = 0; i < same.size(); ++i) {
    SCOPED_TRACE(i);
    problem.options = same[i];
    const Results r = cases::run(context, backend(), problem);
    EXPECT_TRUE(cases::is_close(r.out, expected.out, 1e-6));
    EXPECT_TRUE(cases::is_close(r.lse, expected.lse, 1e-6));
    EXPECT_TRUE(cases::is_close(r.dk, expected.dk, 1e-5));
  }
}

// A bound on the length that is no length gives an empty list here, and an error where it is used.
TEST(ExtremesOptions, LeastMaximumOfTheLength) {
  const Selection planned = plan_selection(AttentionOptions(), 8, 2, 2, std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(planned.kind, SelectionKind::kList);
  EXPECT_EQ(planned.budget(), 0);
}

// int64 offsets whose low 32 bits look right: they are read whole, clamped and reported.
TEST_P(ExtremesTest, OffsetsBeyond32Bits) {
  AttentionOptions options;
  options.block_size = 8;
  Problem problem = small_problem(DType::kFloat32, options);
  problem.cu_seqlens_q = cases::int64_tensor({0, (std::int64_t{1} << 32) + 61, 81});
  problem.cu_seqlens_k = cases::int64_tensor({0, (std::int64_t{1} << 32) + 61, 81});
  problem.max_seqlen_q = problem.max_seqlen_k = 81;
  const Results r = cases::run(context, backend(), problem);
  EXPECT_NE(context.error_bits & kCuSeqlensOutOfRange, 0);
  Problem clamped = small_problem(DType::kFloat32, options);
  clamped.cu_seqlens_q = cases::int64_tensor({0, 81, 81});
  clamped.cu_seqlens_k = cases::int64_tensor({0, 81, 81});
  clamped.max_seqlen_q = clamped.max_seqlen_k = 81;
  const Results expected = cases::run(context, backend(), clamped);
  EXPECT_TRUE(cases::same_bits(r.out, expected.out));
  EXPECT_TRUE(cases::same_bits(r.dk, expected.dk));
}

INSTANTIATE_TEST_SUITE_P(All, ExtremesTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace moba::test
