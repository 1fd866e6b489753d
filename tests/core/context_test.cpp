// What a Context lends: threads never change bits, scratch is bounded, accounted for and its failure is an Error;
// values of cu_seqlens and lists are clamped and reported.
#include <cmath>
#include <limits>

#include "cases/compare.h"
#include "core/support.h"
#include "dtype.h"

namespace moba::test {
namespace {

using cases::HostTensor;
using cases::Problem;
using cases::Results;

bool same_bits(const Results& a, const Results& b) {
  return cases::same_bits(a.out, b.out) && cases::same_bits(a.lse, b.lse) && cases::same_bits(a.dq, b.dq) &&
         cases::same_bits(a.dk, b.dk) && cases::same_bits(a.dv, b.dv);
}

class ContextTest : public BackendTest {};

TEST_P(ContextTest, BitsAreTheSameForAnyNumberOfThreads) {
  const std::vector<int> thread_counts = kSanitized ? std::vector<int>{3} : std::vector<int>{1, 2, 3, 4, 7};
  for (const char* name :
       {"larger", "mixed_lengths", "full", "window_with_sink", "many_blocks_many_chosen", "group_of_16"}) {
    for (DType dtype : dtypes()) {
      const Problem problem(cases::case_named(name, dtype));
      const cases::Choice choice = cases::choose(context, backend(), problem);
      const Results serial = cases::run(context, backend(), problem, choice.selection);
      for (const int threads : thread_counts) {
        TestContext many(threads);
        const cases::Choice other = cases::choose(many, backend(), problem);
        EXPECT_TRUE(choice.selection.kind != SelectionKind::kList || cases::same_bits(choice.list, other.list))
            << name << " threads " << threads;
        EXPECT_TRUE(same_bits(serial, cases::run(many, backend(), problem, choice.selection)))
            << name << " threads " << threads;
      }
    }
  }
}

TEST_P(ContextTest, BitsAreTheSameTwice) {
  TestContext many(4);
  const Problem problem(cases::case_named("larger", DType::kBFloat16));
  EXPECT_TRUE(same_bits(cases::run(many, backend(), problem), cases::run(many, backend(), problem)));
}

// What a forward pass holds beside its arguments and lists does not grow with the threads.
TEST(ScratchTest, ForwardStaysBelow64MegabytesOnAnyNumberOfThreads) {
  cases::Case c;
  c.dtype = DType::kBFloat16;
  c.options.block_size = 32;
  c.options.top_k = 2;
  c.heads = c.kv_heads = 8;
  c.head_dim = c.value_dim = 256;
  const std::int64_t rows = 16384;
  const std::vector<std::int64_t> offsets = {0, rows};
  HostTensor q(c.dtype, {rows, c.heads, c.head_dim}), out = q, lse(DType::kFloat32, {c.heads, rows});
  for (std::int64_t i = 0; i < q.numel(); ++i) q.set(i, static_cast<double>(i * i % 31) / 16.0 - 1.0);
  const PackedBatch batch{ConstTensorView(offsets.data(), DType::kInt64, {2}),
                          ConstTensorView(offsets.data(), DType::kInt64, {2}), rows, rows};
  const std::int64_t lists = 4 * c.options.top_k * rows * c.heads;
  for (const int threads : kSanitized ? std::vector<int>{32} : std::vector<int>{1, 2, 8, 32}) {
    TestContext many(threads);
    attention(many, cpu_backend(), c.options, q.view(), q.view(), q.view(), batch, {out.view(), lse.view()});
    EXPECT_LE(many.peak(), 64'000'000 + lists) << threads << " threads";
  }
}

TEST_P(ContextTest, NullFromTheAllocatorIsAnErrorAndLeaksNothing) {
  for (const char* name : {"mixed_lengths", "full", "window_with_sink"}) {
    const Problem problem(cases::case_named(name, DType::kBFloat16));
    TestContext counting(2);
    cases::run(counting, backend(), problem);
    ASSERT_GT(counting.allocations(), 0);
    bool failed_once = false;
    for (std::int64_t n = 0; n < counting.allocations(); n += 1 + n / 8) {
      TestContext failing(2);
      failing.fail_from = n;
      try {
        cases::run(failing, backend(), problem);
      } catch (const Error& error) {
        failed_once = true;
        EXPECT_EQ(error.code(), ErrorCode::kWorkspace);
        EXPECT_NE(std::string(error.what()).find("allocator returned null"), std::string::npos) << error.what();
      }
    }  // ~TestContext checks that everything was released
    EXPECT_TRUE(failed_once);
  }
}

// The scratch of a verb stays within the limit, for any limit that it accepts; it says so when it cannot.
TEST_P(ContextTest, ScratchStaysWithinTheLimit) {
  for (const char* name : {"larger", "many_blocks_many_chosen", "full", "mixed_lengths"}) {
    const Problem problem(cases::case_named(name, DType::kBFloat16));
    TestContext oracle(2);
    const cases::Choice choice = cases::choose(oracle, backend(), problem);
    const Results expected = cases::run(oracle, backend(), problem, choice.selection);
    int accepted = 0;
    for (std::int64_t limit = std::int64_t{1} << 32; limit >= 1 << 10; limit /= 16) {
      TestContext limited(2);
      limited.limit = limit;
      try {
        const Results r = cases::run(limited, backend(), problem, choice.selection);
        EXPECT_LE(limited.peak(), limit) << name;
        EXPECT_TRUE(same_bits(r, expected)) << name << " limit " << limit;
        ++accepted;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kWorkspace) << error.what();
      }
    }
    EXPECT_GE(accepted, 3) << name << ": 16 MiB and above must do";
  }
}

// Rows that no sequence holds are empty, and offsets out of range reach no memory outside the tensors.
TEST_P(ContextTest, OffsetsAreClampedAndReported) {
  struct Offsets {
    std::vector<double> q, k;
    std::vector<double> q_clamped, k_clamped;
  };
  constexpr double kHuge = 2000000000.0;
  const Offsets table[] = {
      {{0, 60, 200, 100}, {0, 60, 200, 100}, {0, 60, 200, 200}, {0, 60, 200, 200}},  // falls
      {{0, 60, kHuge}, {0, 60, 201}, {0, 60, 200}, {0, 60, 200}},                    // beyond the end
      {{-5, 60, 200}, {-kHuge, 60, 200}, {0, 60, 200}, {0, 60, 200}},                // before the beginning
      {{0, kHuge, -kHuge, 200}, {0, 50, 30, 200}, {0, 200, 200, 200}, {0, 50, 50, 200}},
  };
  for (Kind kind : {Kind::kMoba, Kind::kFull}) {
    Problem problem(cases::case_named("two_blocks"));
    problem.options.kind = kind;
    for (const Offsets& offsets : table) {
      for (DType dtype : {DType::kInt32, DType::kInt64}) {
        const auto with = [&](const std::vector<double>& q, const std::vector<double>& k) {
          Problem result = problem;
          result.cu_seqlens_q = HostTensor(dtype, {static_cast<std::int64_t>(q.size())});
          result.cu_seqlens_k = HostTensor(dtype, {static_cast<std::int64_t>(k.size())});
          result.cu_seqlens_q.fill(q);
          result.cu_seqlens_k.fill(k);
          return result;
        };
        TestContext clean(2), broken(2);
        const Results expected = cases::run(clean, backend(), with(offsets.q_clamped, offsets.k_clamped));
        EXPECT_EQ(clean.error_bits, 0);
        const Results r = cases::run(broken, backend(), with(offsets.q, offsets.k));
        EXPECT_TRUE(broken.error_bits & kCuSeqlensOutOfRange);
        // `select` knows the number of keys only to within a block, so a list may be made for other positions.
        EXPECT_TRUE(problem.options.kind == Kind::kMoba || same_bits(r, expected));
      }
    }
  }
}

TEST_P(ContextTest, RowsOfNoSequenceAreEmpty) {
  for (const char* name : {"two_blocks", "odd_block"}) {
    Problem problem(cases::case_named(name));
    const std::int64_t used = 110, rows = problem.rows(), heads = problem.heads();
    problem.cu_seqlens_q = problem.cu_seqlens_k = cases::offsets_of({70, 40});
    const Results r = cases::run(context, backend(), problem);
    EXPECT_EQ(context.error_bits, 0);
    for (std::int64_t i = 0; i < r.out.numel(); ++i) {
      const double x = r.out.get(i);
      ASSERT_TRUE(i / (heads * problem.value_dim()) < used ? std::isfinite(x) : x == 0.0) << i;
    }
    for (std::int64_t i = 0; i < r.lse.numel(); ++i) {
      ASSERT_EQ(std::isinf(r.lse.get(i)), i % rows >= used);
    }
    for (const HostTensor* gradient : {&r.dq, &r.dk, &r.dv}) {
      const std::int64_t per_token = gradient->view().shape[1] * gradient->view().shape[2];
      for (std::int64_t i = 0; i < gradient->numel(); ++i) {
        const double x = gradient->get(i);
        ASSERT_TRUE(i / per_token < used ? std::isfinite(x) : x == 0.0) << i;
      }
    }
    const cases::Choice choice = cases::choose(context, backend(), problem);
    for (std::int64_t i = used * heads * choice.selection.budget(); i < choice.list.numel(); ++i) {
      ASSERT_EQ(choice.list.get(i), -1);
    }
  }
}

TEST_P(ContextTest, SequencesAboveTheMaximumAreCutAndReported) {
  Problem problem(cases::case_named("two_blocks"));
  problem.max_seqlen_q = 150;
  problem.max_seqlen_k = 150;
  const Results r = cases::run(context, backend(), problem);
  EXPECT_EQ(context.error_bits, kSeqlenAboveMaximum);
  for (std::int64_t row = 0; row < 200; ++row) ASSERT_EQ(std::isinf(r.lse.get(row)), row >= 150) << row;
  TestContext exact;
  problem.max_seqlen_q = problem.max_seqlen_k = 200;
  cases::run(exact, backend(), problem);
  EXPECT_EQ(exact.error_bits, 0);
}

// Listed blocks that are not in the past, or not ascending, count as absent.
TEST_P(ContextTest, BadListEntriesAreIgnoredAndReported) {
  for (DType dtype : dtypes()) {
    const Problem problem(cases::case_named("many_blocks_many_chosen", dtype));  // 333 tokens in blocks of 8
    const std::int64_t heads = problem.heads(), budget = 4;
    const auto run_with = [&](TestContext& lent, auto&& entry) {
      HostTensor list(DType::kInt32, {problem.rows(), heads, budget});
      for (std::int64_t i = 0; i < list.numel(); ++i) list.set(i, entry(i / (heads * budget) / 8, i % budget));
      Selection selection;
      selection.kind = SelectionKind::kList;
      selection.block_size = 8;
      selection.blocks = list.view();
      return cases::run(lent, backend(), problem, selection);
    };
    TestContext clean(2), broken(2);
    const Results expected =
        run_with(clean, [](std::int64_t own, std::int64_t slot) { return slot == 0 && own > 1 ? 1.0 : -1.0; });
    EXPECT_EQ(clean.error_bits, 0);
    const Results r = run_with(broken, [](std::int64_t own, std::int64_t slot) {
      const double bad[] = {1.0, own + 0.0, 2147483647.0, -2147483648.0};  // one good from own block 2 on
      return own == 3 && slot == 1 ? 1.0 : bad[slot];                      // and one listed twice
    });
    EXPECT_EQ(broken.error_bits, kSelectionOutOfRange);
    EXPECT_TRUE(same_bits(r, expected)) << name_of(dtype);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ContextTest, ::testing::ValuesIn(backends()), backend_name);

// SerialContext, the one that examples use, runs everything too.
TEST(SerialContextTest, Works) {
  SerialContext context;
  const Problem problem(cases::case_named("mixed_lengths"));
  TestContext other;
  EXPECT_TRUE(same_bits(cases::run(context, cpu_backend(), problem), cases::run(other, cpu_backend(), problem)));
}

}  // namespace
}  // namespace moba::test
