// What must be the same attention computed in two ways.
#include <cmath>
#include <limits>
#include <random>

#include "cases/compare.h"
#include "cases/dense.h"
#include "core/support.h"
#include "dtype.h"

namespace moba::test {
namespace {

using cases::Case;
using cases::HostTensor;
using cases::Problem;
using cases::Results;

/// Both ways round their results once and sum in float32 in different orders: a few units in the last place.
double tolerance_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return 1e-5;
    case DType::kFloat16: return 0x1p-9;
    default: return 0x1p-6;
  }
}

void expect_close(const Results& a, const Results& b, double tolerance) {
  EXPECT_TRUE(cases::is_close(a.out, b.out, tolerance)) << "out";
  EXPECT_TRUE(cases::is_close(a.lse, b.lse, 1e-5)) << "lse";
  EXPECT_TRUE(cases::is_close(a.dq, b.dq, tolerance)) << "dq";
  EXPECT_TRUE(cases::is_close(a.dk, b.dk, tolerance)) << "dk";
  EXPECT_TRUE(cases::is_close(a.dv, b.dv, tolerance)) << "dv";
}

class IdentityTest : public BackendTest {
 protected:
  Results run(Problem problem, const AttentionOptions& options) {
    problem.options = options;
    return cases::run(context, backend(), problem);
  }
  static AttentionOptions full() {
    AttentionOptions options;
    options.kind = Kind::kFull;
    return options;
  }
};

const char* const kShapes[] = {
    "packed",    "zero_length_sequence_inside", "mixed_lengths",         "group_of_8", "dims_96_33",
    "odd_block", "block_of_one_token",          "more_queries_than_keys"};

TEST_P(IdentityTest, EveryBlockChosenIsFullAttention) {
  for (const char* name : kShapes) {
    for (DType dtype : dtypes()) {
      const Problem problem(cases::case_named(name, dtype));
      AttentionOptions all = problem.options;
      all.top_k = 1000000;
      SCOPED_TRACE(std::string(name) + " " + name_of(dtype));
      expect_close(run(problem, all), run(problem, full()), tolerance_of(dtype));
    }
  }
}

TEST_P(IdentityTest, OneBlockIsFullAttention) {
  Problem problem(cases::case_named("packed"));
  problem.options.block_size = 129;  // the longest sequence
  for (std::int64_t top_k : {1, 3}) {
    problem.options.top_k = top_k;
    expect_close(run(problem, problem.options), run(problem, full()), 1e-5);
  }
}

// top_k 1 is attention within blocks: the same as every block being a sequence of its own.
TEST_P(IdentityTest, OwnBlockOnlyIsBlockDiagonal) {
  for (DType dtype : dtypes()) {
    Problem problem(cases::case_named("own_block_only", dtype));  // 200 tokens, blocks of 64
    const Results own = run(problem, problem.options);
    problem.cu_seqlens_q = problem.cu_seqlens_k = cases::offsets_of({64, 64, 64, 8});
    problem.max_seqlen_q = problem.max_seqlen_k = 64;
    expect_close(own, run(problem, full()), tolerance_of(dtype));
  }
}

TEST_P(IdentityTest, CompatibilityFlagMakesTopK1Full) {
  const Problem problem(cases::case_named("compat_top_k_1"));
  expect_close(run(problem, problem.options), run(problem, full()), 0.0);
  AttentionOptions plain = problem.options;
  plain.compat_topk1_full = false;
  EXPECT_GT(cases::max_error(run(problem, plain).out, run(problem, full()).out), 0.01);
  AttentionOptions two = problem.options;
  two.top_k = 2;  // the flag says nothing about other values
  AttentionOptions two_plain = two;
  two_plain.compat_topk1_full = false;
  expect_close(run(problem, two), run(problem, two_plain), 0.0);
}

TEST_P(IdentityTest, WindowOverEverythingIsFullAttention) {
  for (const char* name : kShapes) {
    const Problem problem(cases::case_named(name));
    AttentionOptions window;
    window.kind = Kind::kWindow;
    for (std::int64_t width : {problem.max_seqlen_k, std::int64_t{1} << 40, std::numeric_limits<std::int64_t>::max()}) {
      window.window = std::max<std::int64_t>(width, 1);
      SCOPED_TRACE(name);
      expect_close(run(problem, window), run(problem, full()), 1e-5);
    }
    window.window = 1;
    window.sink = std::numeric_limits<std::int64_t>::max();
    expect_close(run(problem, window), run(problem, full()), 1e-5);
  }
}

// A window of one key and no sink copies v.
TEST_P(IdentityTest, WindowOfOneKeyCopiesTheValue) {
  const Problem problem(cases::case_named("window_of_one_key", DType::kBFloat16));
  const Results r = cases::run(context, backend(), problem);
  const std::int64_t heads = problem.heads(), dim = problem.value_dim();
  for (std::int64_t i = 0; i < r.out.numel(); ++i) {
    const std::int64_t row = i / (heads * dim), head = i / dim % heads;
    ASSERT_EQ(r.out.get(i), problem.v.get((row * problem.kv_heads() + head / 2) * dim + i % dim));
  }
}

/// Sequence s of a packed problem as a problem of its own.
Problem sequence_of(const Problem& problem, std::int64_t s) {
  const auto part = [](const HostTensor& tensor, std::int64_t begin, std::int64_t end) {
    const TensorView view = tensor.view();
    HostTensor result(tensor.dtype(), {end - begin, view.shape[1], view.shape[2]});
    for (std::int64_t i = 0; i < result.numel(); ++i)
      result.set(i, tensor.get(begin * view.shape[1] * view.shape[2] + i));
    return result;
  };
  const std::int64_t q0 = static_cast<std::int64_t>(problem.cu_seqlens_q.get(s)),
                     q1 = static_cast<std::int64_t>(problem.cu_seqlens_q.get(s + 1));
  const std::int64_t k0 = static_cast<std::int64_t>(problem.cu_seqlens_k.get(s)),
                     k1 = static_cast<std::int64_t>(problem.cu_seqlens_k.get(s + 1));
  Problem result;
  result.options = problem.options;
  result.q = part(problem.q, q0, q1);
  result.k = part(problem.k, k0, k1);
  result.v = part(problem.v, k0, k1);
  result.dout = part(problem.dout, q0, q1);
  result.dlse = HostTensor(problem.dlse.dtype(), {problem.heads(), q1 - q0});
  for (std::int64_t h = 0; h < problem.heads(); ++h) {
    for (std::int64_t r = 0; r < q1 - q0; ++r) {
      result.dlse.set(h * (q1 - q0) + r, problem.dlse.get(h * problem.rows() + q0 + r));
    }
  }
  result.cu_seqlens_q = cases::offsets_of({q1 - q0});
  result.cu_seqlens_k = cases::offsets_of({k1 - k0});
  result.max_seqlen_q = q1 - q0;
  result.max_seqlen_k = k1 - k0;
  return result;
}

TEST_P(IdentityTest, PackedIsALoopOverSequences) {
  for (const char* name :
       {"packed", "mixed_lengths", "many_short_sequences", "zero_length_sequences_at_the_ends", "window_with_sink",
        "full_fewer_queries", "odd_block", "queries_without_keys", "keys_without_queries"}) {
    for (DType dtype : dtypes()) {
      SCOPED_TRACE(std::string(name) + " " + name_of(dtype));
      const Problem problem(cases::case_named(name, dtype));
      const Results packed = cases::run(context, backend(), problem);
      for (std::int64_t s = 0; s < problem.batch().sequences(); ++s) {
        const Problem alone = sequence_of(problem, s);
        const Results r = cases::run(context, backend(), alone);
        const auto expect_part = [&](const HostTensor& whole, const HostTensor& part, double first_row,
                                     const char* what) {
          const std::int64_t row_size = whole.view().shape[1] * whole.view().shape[2];
          const std::int64_t offset = static_cast<std::int64_t>(first_row) * row_size;
          for (std::int64_t i = 0; i < part.numel(); ++i) {
            ASSERT_NEAR(whole.get(offset + i), part.get(i), tolerance_of(dtype) * std::max(1.0, std::fabs(part.get(i))))
                << what << " of sequence " << s;
          }
        };
        expect_part(packed.out, r.out, problem.cu_seqlens_q.get(s), "out");
        expect_part(packed.dq, r.dq, problem.cu_seqlens_q.get(s), "dq");
        expect_part(packed.dk, r.dk, problem.cu_seqlens_k.get(s), "dk");
        expect_part(packed.dv, r.dv, problem.cu_seqlens_k.get(s), "dv");
      }
    }
  }
}

// Rows without a key: {0, -inf}, no gradient, and no effect on other rows' gradients, whatever the output gradient
// says.
TEST_P(IdentityTest, RowsWithoutKeysAreEmpty) {
  for (const char* name :
       {"more_queries_than_keys", "full_more_queries", "window_more_queries", "queries_without_keys"}) {
    for (DType dtype : dtypes()) {
      Problem problem(cases::case_named(name, dtype));
      const std::int64_t heads = problem.heads(), dim = problem.value_dim();
      const std::int64_t empty_rows =
          name == std::string("queries_without_keys") ? 20 : problem.rows() - problem.keys();
      ASSERT_GT(empty_rows, 0);
      for (std::int64_t i = 0; i < empty_rows * heads * dim; ++i)
        problem.dout.set(i, std::numeric_limits<double>::quiet_NaN());
      const Results r = cases::run(context, backend(), problem);
      for (std::int64_t row = 0; row < problem.rows(); ++row) {
        for (std::int64_t h = 0; h < heads; ++h) {
          const double lse = r.lse.get(h * problem.rows() + row);
          ASSERT_EQ(std::isinf(lse) && lse < 0, row < empty_rows) << name << " row " << row;
        }
      }
      for (std::int64_t i = 0; i < empty_rows * heads * dim; ++i) ASSERT_EQ(r.out.get(i), 0.0) << name;
      for (std::int64_t i = 0; i < empty_rows * heads * problem.head_dim(); ++i) ASSERT_EQ(r.dq.get(i), 0.0) << name;
      for (const HostTensor* gradient : {&r.dq, &r.dk, &r.dv}) {
        for (double x : gradient->values()) ASSERT_TRUE(std::isfinite(x)) << name;
      }
    }
  }
}

// Changing a later token changes nothing before it; the keys of a row's own future are never touched.
TEST_P(IdentityTest, IsCausal) {
  for (const char* name : {"two_blocks", "full", "window_with_sink"}) {
    Problem problem(cases::case_named(name));
    const Results before = cases::run(context, backend(), problem);
    const std::int64_t changed = 131;
    for (std::int64_t i = 0; i < problem.kv_heads() * problem.head_dim(); ++i) {
      problem.k.set(changed * problem.kv_heads() * problem.head_dim() + i, std::numeric_limits<double>::quiet_NaN());
      problem.v.set(changed * problem.kv_heads() * problem.head_dim() + i, std::numeric_limits<double>::quiet_NaN());
    }
    const Results after = cases::run(context, backend(), problem);
    for (std::int64_t i = 0; i < changed * problem.heads() * problem.value_dim(); ++i) {
      ASSERT_EQ(before.out.get(i), after.out.get(i)) << name << " row " << i / (problem.heads() * problem.value_dim());
    }
    EXPECT_TRUE(std::isnan(after.out.get(changed * problem.heads() * problem.value_dim())));
  }
}

// A value that is no number spoils the rows that attend it and no other, forward and backward.
TEST_P(IdentityTest, BadValuesSpoilOnlyTheRowsThatAttendThem) {
  for (const char* name : {"two_blocks", "packed", "full", "window", "window_with_sink", "many_blocks_many_chosen"}) {
    for (DType dtype : dtypes()) {
      for (double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        Problem problem(cases::case_named(name, dtype));
        const cases::Choice choice = cases::choose(context, backend(), problem);
        const Results clean = cases::run(context, backend(), problem, choice.selection);
        const std::int64_t token = 66, kv_head = 1, dim = problem.value_dim(), heads = problem.heads();
        problem.v.set((token * problem.kv_heads() + kv_head) * dim + 2, bad);
        const Results r = cases::run(context, backend(), problem, choice.selection);
        const cases::Mask mask(problem, choice.selection);
        for (std::int64_t row = 0; row < problem.rows(); ++row) {
          for (std::int64_t h = 0; h < heads; ++h) {
            const bool attends = h / (heads / problem.kv_heads()) == kv_head && mask.sees(row, h, token);
            const std::int64_t at = (row * heads + h) * dim;
            ASSERT_EQ(std::isfinite(r.out.get(at + 2)), !attends) << name << " row " << row << " head " << h;
            ASSERT_EQ(r.out.get(at + 1), clean.out.get(at + 1)) << name << " row " << row;
            if (!attends) {
              for (std::int64_t d = 0; d < problem.head_dim(); ++d) {
                const std::int64_t i = (row * heads + h) * problem.head_dim() + d;
                ASSERT_EQ(r.dq.get(i), clean.dq.get(i)) << name << " dq of row " << row;
              }
            }
          }
        }
        EXPECT_TRUE(cases::same_bits(r.lse, clean.lse));
      }
    }
  }
}

// A query that is no number spoils its own row only, and the gradients of the keys it attends only.
TEST_P(IdentityTest, BadQueriesSpoilOnlyTheirRow) {
  for (const char* name : {"two_blocks", "full", "window"}) {
    Problem problem(cases::case_named(name));
    const cases::Choice choice = cases::choose(context, backend(), problem);
    const Results clean = cases::run(context, backend(), problem, choice.selection);
    const std::int64_t row = 140, head = 1, heads = problem.heads(), dim = problem.head_dim();
    problem.q.set((row * heads + head) * dim, std::numeric_limits<double>::quiet_NaN());
    const Results r = cases::run(context, backend(), problem, choice.selection);
    const cases::Mask mask(problem, choice.selection);
    for (std::int64_t i = 0; i < r.out.numel(); ++i) {
      if (i / dim == row * heads + head) {
        ASSERT_TRUE(std::isnan(r.out.get(i)));
      } else {
        ASSERT_EQ(r.out.get(i), clean.out.get(i)) << name << " row " << i / (dim * heads);
      }
    }
    for (std::int64_t key = 0; key < problem.keys(); ++key) {
      const bool attended = mask.sees(row, head, key);
      for (std::int64_t d = 0; d < dim; ++d) {
        ASSERT_EQ(std::isnan(r.dk.get(key * problem.kv_heads() * dim + d)), attended) << name << " key " << key;
        ASSERT_EQ(std::isnan(r.dv.get(key * problem.kv_heads() * dim + d)), attended) << name << " key " << key;
        ASSERT_EQ(r.dv.get((key * problem.kv_heads() + 1) * dim + d),
                  clean.dv.get((key * problem.kv_heads() + 1) * dim + d));
      }
    }
  }
}

// Scores of -inf are keys without weight; a row of nothing else is empty.
TEST_P(IdentityTest, RowsOfMinusInfinityAreEmpty) {
  Problem problem(cases::case_named("two_blocks"));
  AttentionOptions options = full();
  for (std::int64_t i = 0; i < problem.q.numel(); ++i) problem.q.set(i, 1.0);
  const std::int64_t row_size = problem.kv_heads() * problem.head_dim();
  for (std::int64_t t = 0; t < 10; ++t) problem.k.set(t * row_size, -std::numeric_limits<double>::infinity());
  const Results r = run(problem, options);
  for (std::int64_t row = 0; row < 10; ++row) {
    EXPECT_EQ(r.lse.get(row), -std::numeric_limits<double>::infinity()) << row;
    EXPECT_EQ(r.out.get(row * problem.heads() * problem.value_dim()), 0.0) << row;
  }
  EXPECT_TRUE(std::isfinite(r.lse.get(10)));
  EXPECT_TRUE(std::isfinite(r.out.get(10 * problem.heads() * problem.value_dim())));
}

// A chunk of queries at the end of the keys gives the rows that one shot gives: same choice, same numbers.
TEST_P(IdentityTest, FewerQueriesGiveTheLastRows) {
  for (const char* name : {"two_blocks", "odd_block", "window_with_sink", "full"}) {
    Problem whole = sequence_of(Problem(cases::case_named(name)), 0);
    const cases::Choice choice = cases::choose(context, backend(), whole);
    const Results all = cases::run(context, backend(), whole, choice.selection, false);
    for (std::int64_t rows : {1, 2, 17, 63, 64, 65, 100}) {
      Problem chunk = whole;
      const std::int64_t skipped = whole.rows() - rows, row_size = whole.heads() * whole.head_dim();
      chunk.q = HostTensor(whole.q.dtype(), {rows, whole.heads(), whole.head_dim()});
      for (std::int64_t i = 0; i < rows * row_size; ++i) chunk.q.set(i, whole.q.get(skipped * row_size + i));
      chunk.cu_seqlens_q = cases::offsets_of({rows});
      chunk.max_seqlen_q = rows;
      chunk.cu_seqlens_k = whole.cu_seqlens_k.to(DType::kInt64);
      const cases::Choice chunk_choice = cases::choose(context, backend(), chunk);
      for (std::int64_t i = 0; i < chunk_choice.list.numel(); ++i) {
        ASSERT_EQ(chunk_choice.list.get(i), choice.list.get(choice.list.numel() - chunk_choice.list.numel() + i))
            << name;
      }
      const Results r = cases::run(context, backend(), chunk, chunk_choice.selection, false);
      for (std::int64_t i = 0; i < r.out.numel(); ++i) {
        const double expected = all.out.get(all.out.numel() - r.out.numel() + i);
        ASSERT_NEAR(r.out.get(i), expected, 2e-6 * std::max(1.0, std::fabs(expected))) << name << " rows " << rows;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, IdentityTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace moba::test
