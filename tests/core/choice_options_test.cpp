// The options of the choice: forced blocks, shared choices, float32 representatives; each by what it must equal.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "cases/compare.h"
#include "core/best_blocks.h"
#include "core/support.h"

namespace moba::test {
namespace {

using cases::Case;
using cases::HostTensor;
using cases::Problem;

constexpr ShareScore kWays[] = {ShareScore::kSumLogit, ShareScore::kSumProb, ShareScore::kMax};

/// Every option off its default by itself, and some together.
std::vector<AttentionOptions> option_sets(const AttentionOptions& base) {
  std::vector<AttentionOptions> sets;
  const auto add = [&](const std::function<void(AttentionOptions&)>& change) {
    AttentionOptions options = base;
    change(options);
    sets.push_back(options);
  };
  add([](AttentionOptions& o) { o.force_previous = true; });
  add([](AttentionOptions& o) { o.sink_blocks = 2; });
  add([](AttentionOptions& o) { o.representative_dtype = RepresentativeDType::kFloat32; });
  for (Share share : {Share::kGroup, Share::kLayer}) {
    for (ShareScore way : kWays) {
      add([&](AttentionOptions& o) {
        o.share = share;
        o.share_score = way;
      });
      add([&](AttentionOptions& o) {
        o.share = share;
        o.share_score = way;
        o.force_previous = true;
        o.sink_blocks = 1;
        o.representative_dtype = RepresentativeDType::kFloat32;
      });
    }
  }
  return sets;
}

std::string text_of(const AttentionOptions& o) {
  return std::string("previous ") + std::to_string(o.force_previous) + " sinks " + std::to_string(o.sink_blocks) +
         " share " + name_of(o.share) + " " + name_of(o.share_score) + " representatives " +
         name_of(o.representative_dtype);
}

Case one_sequence(std::int64_t length, DType dtype) {
  Case c;
  c.dtype = dtype;
  c.options.block_size = 8;
  c.options.top_k = 5;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 24;
  c.value_dim = 16;
  c.q_lengths = c.k_lengths = {length};
  c.seed = 11;
  return c;
}

/// Small whole numbers: means over blocks of 8 and products are exact in every dtype and in any order.
void make_exact(Problem& problem, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto fill = [&](HostTensor& tensor, std::int64_t step) {
    for (std::int64_t i = 0; i < tensor.numel(); ++i) {
      tensor.set(i, static_cast<double>(step * (static_cast<std::int64_t>(random() % 7) - 3)));
    }
  };
  fill(problem.q, 1);
  fill(problem.k, 8);
}

class ChoiceOptionsTest : public BackendTest {
 protected:
  cases::Choice choose(Problem problem, const AttentionOptions& options) {
    problem.options = options;
    return cases::choose(context, backend(), problem);
  }
  /// The list of (row, selection head).
  static std::vector<std::int32_t> list_of(const cases::Choice& choice, std::int64_t row, std::int64_t list) {
    const std::int64_t budget = choice.selection.budget();
    const std::int32_t* at =
        choice.list.view().as<std::int32_t>() + (row * choice.selection.selection_heads() + list) * budget;
    return {at, at + budget};
  }
  /// Every query head's list is the same in both.
  static void expect_same_lists(const cases::Choice& a, const cases::Choice& b, std::int64_t heads) {
    ASSERT_EQ(a.selection.budget(), b.selection.budget());
    for (std::int64_t row = 0; row < a.selection.blocks.shape[0]; ++row) {
      for (std::int64_t h = 0; h < heads; ++h) {
        ASSERT_EQ(list_of(a, row, h * a.selection.selection_heads() / heads),
                  list_of(b, row, h * b.selection.selection_heads() / heads))
            << "row " << row << " head " << h;
      }
    }
  }
};

TEST_P(ChoiceOptionsTest, PlansListsForHeadsGroupsOrTheLayer) {
  AttentionOptions options;
  EXPECT_EQ(plan_selection(options, 100, 6, 2).selection_heads(), 6);
  options.share = Share::kGroup;
  EXPECT_EQ(plan_selection(options, 100, 6, 2).selection_heads(), 2);
  options.share = Share::kLayer;
  EXPECT_EQ(plan_selection(options, 100, 6, 2).selection_heads(), 1);
}

TEST_P(ChoiceOptionsTest, GroupsOfOneHeadChooseAsHeadsDo) {
  for (DType dtype : dtypes()) {
    Case c = one_sequence(300, dtype);
    c.heads = c.kv_heads = 3;
    const Problem problem(c);
    const cases::Choice per_head = choose(problem, c.options);
    for (ShareScore way : kWays) {
      AttentionOptions options = c.options;
      options.share = Share::kGroup;
      options.share_score = way;
      expect_same_lists(choose(problem, options), per_head, 3);
    }
  }
}

TEST_P(ChoiceOptionsTest, ALayerOfOneHeadChoosesAsTheHeadDoes) {
  for (DType dtype : dtypes()) {
    Case c = one_sequence(300, dtype);
    c.heads = c.kv_heads = 1;
    const Problem problem(c);
    const cases::Choice per_head = choose(problem, c.options);
    for (ShareScore way : kWays) {
      AttentionOptions options = c.options;
      options.share = Share::kLayer;
      options.share_score = way;
      expect_same_lists(choose(problem, options), per_head, 1);
    }
  }
}

// Heads that ask the same choose together what each would choose.
TEST_P(ChoiceOptionsTest, ReplicatedHeadsChooseTogetherAsOneDoes) {
  for (DType dtype : dtypes()) {
    for (Share share : {Share::kGroup, Share::kLayer}) {
      Case c = one_sequence(400, dtype);
      c.heads = 6;
      c.kv_heads = share == Share::kLayer ? 1 : 2;
      c.options.softmax_scale = 1.0 / 64;  // no probability is too small to tell
      Problem problem(c);
      make_exact(problem, 3);
      const std::int64_t group = c.heads / c.kv_heads, dim = c.head_dim;
      for (std::int64_t i = 0; i < problem.q.numel(); ++i) {
        const std::int64_t row = i / (c.heads * dim), head = i / dim % c.heads / group * group;
        problem.q.set(i, problem.q.get((row * c.heads + head) * dim + i % dim));
      }
      const cases::Choice per_head = choose(problem, c.options);
      for (ShareScore way : kWays) {
        AttentionOptions options = c.options;
        options.share = share;
        options.share_score = way;
        SCOPED_TRACE(text_of(options) + " " + name_of(dtype));
        expect_same_lists(choose(problem, options), per_head, c.heads);
      }
    }
  }
}

// The sum of products with one representative is the product with the sum of the queries.
TEST_P(ChoiceOptionsTest, SumsOfLogitsAreLogitsOfTheSummedQuery) {
  for (DType dtype : dtypes()) {
    Case c = one_sequence(400, dtype);
    c.heads = 4;
    c.kv_heads = 1;
    Problem problem(c);
    make_exact(problem, 4);
    AttentionOptions shared = c.options;
    shared.share = Share::kLayer;
    Case single = c;
    single.heads = 1;
    Problem summed(single);
    summed.k = problem.k;
    for (std::int64_t row = 0; row < problem.rows(); ++row) {
      for (std::int64_t d = 0; d < c.head_dim; ++d) {
        double sum = 0.0;
        for (std::int64_t h = 0; h < 4; ++h) sum += problem.q.get((row * 4 + h) * c.head_dim + d);
        summed.q.set(row * c.head_dim + d, sum);
      }
    }
    expect_same_lists(choose(problem, shared), choose(summed, c.options), 1);
  }
}

// Under `max` a head whose products are all beaten has no say.
TEST_P(ChoiceOptionsTest, TheGreatestProductDecidesForMax) {
  Case c = one_sequence(400, DType::kFloat32);
  c.heads = 2;
  c.kv_heads = 1;
  Problem problem(c);
  make_exact(problem, 5);
  for (std::int64_t i = 0; i < problem.k.numel(); ++i) {
    if (i % c.head_dim == 0) problem.k.set(i, 1000.0);
  }
  for (std::int64_t row = 0; row < problem.rows(); ++row) {
    problem.q.set(row * 2 * c.head_dim, 10.0);       // head 0: above 10,000 - 1,000
    problem.q.set((row * 2 + 1) * c.head_dim, 0.0);  // head 1: at most 1,656
  }
  AttentionOptions shared = c.options;
  shared.share = Share::kLayer;
  shared.share_score = ShareScore::kMax;
  const cases::Choice together = choose(problem, shared), per_head = choose(problem, c.options);
  for (std::int64_t row = 0; row < problem.rows(); ++row) {
    ASSERT_EQ(list_of(together, row, 0), list_of(per_head, row, 0)) << "row " << row;
  }
}

// A head that is sure of its block outweighs one whose products are large but alike; their sum and their maximum would
// follow the other.
TEST_P(ChoiceOptionsTest, ProbabilitiesAreEachHeadsOwn) {
  Case c = one_sequence(5 * 8, DType::kFloat32);
  c.options.top_k = 2;
  c.options.softmax_scale = 1.0;
  c.heads = 2;
  c.kv_heads = 1;
  c.head_dim = 8;
  Problem problem(c);
  for (std::int64_t i = 0; i < problem.q.numel(); ++i) problem.q.set(i, 0.0);
  for (std::int64_t i = 0; i < problem.k.numel(); ++i) problem.k.set(i, 0.0);
  // Means: coordinate 0 is 10 + block / 100, coordinate 1 is 5 for block 1.
  for (std::int64_t t = 0; t < problem.keys(); ++t) {
    problem.k.set(t * 8, 10.0 + static_cast<double>(t / 8) / 100);
    if (t / 8 == 1) problem.k.set(t * 8 + 1, 5.0);
  }
  const std::int64_t row = 39;
  problem.q.set(row * 16, 50.0);     // head 0: 500, 500.5, 501, 501.5
  problem.q.set(row * 16 + 9, 1.0);  // head 1: 0, 5, 0, 0
  const std::pair<ShareScore, int> expected[] = {
      {ShareScore::kSumLogit, 1}, {ShareScore::kMax, 3}, {ShareScore::kSumProb, 1}};
  for (const auto& [way, block] : expected) {
    AttentionOptions options = c.options;
    options.share = Share::kGroup;
    options.share_score = way;
    EXPECT_EQ(list_of(choose(problem, options), row, 0)[0], block) << name_of(way);
  }
  // A hundred times as large, the sum follows head 0, the probabilities do not.
  problem.q.set(row * 16, 500.0);  // 5000, 5005, 5010, 5015
  AttentionOptions options = c.options;
  options.share = Share::kGroup;
  EXPECT_EQ(list_of(choose(problem, options), row, 0)[0], 3);
  options.share_score = ShareScore::kSumProb;
  problem.q.set(row * 16 + 17 - 8, 8.0);  // head 1: 40 for block 1
  EXPECT_EQ(list_of(choose(problem, options), row, 0)[0], 1);
}

// What is forced with nothing beside it: the last two blocks, the first blocks, and both.
TEST_P(ChoiceOptionsTest, ForcedBlocksAloneAreAWindowAndSinks) {
  const Problem problem(one_sequence(100, DType::kBFloat16));
  AttentionOptions options = problem.options;
  options.top_k = 2;
  options.force_previous = true;
  const cases::Choice window = choose(problem, options);
  options.force_previous = false;
  options.top_k = 3;
  options.sink_blocks = 2;
  const cases::Choice sinks = choose(problem, options);
  options.force_previous = true;
  options.top_k = 4;
  const cases::Choice both = choose(problem, options);
  for (std::int64_t row = 0; row < problem.rows(); ++row) {
    const int own = static_cast<int>(row / 8);
    for (std::int64_t head = 0; head < 4; ++head) {
      EXPECT_EQ(list_of(window, row, head), (std::vector<std::int32_t>{own - 1}));
      EXPECT_EQ(list_of(sinks, row, head), (std::vector<std::int32_t>{own > 0 ? 0 : -1, own > 1 ? 1 : -1}));
      EXPECT_EQ(list_of(both, row, head),
                (std::vector<std::int32_t>{own > 0 ? 0 : -1, own > 1 ? 1 : -1, own > 2 ? own - 1 : -1}));
    }
  }
}

// With room for all blocks it makes no difference which are forced, and how they are scored: full attention.
TEST_P(ChoiceOptionsTest, EveryOptionWithEveryBlockIsFullAttention) {
  for (DType dtype : dtypes()) {
    Problem problem(one_sequence(90, dtype));
    Problem full = problem;
    full.options.kind = Kind::kFull;
    const cases::Results expected = cases::run(context, backend(), full);
    const double tolerance = dtype == DType::kFloat32 ? 1e-5 : dtype == DType::kFloat16 ? 0x1p-9 : 0x1p-6;
    for (AttentionOptions options : option_sets(problem.options)) {
      options.top_k = 12;
      SCOPED_TRACE(text_of(options) + " " + name_of(dtype));
      problem.options = options;
      const cases::Results r = cases::run(context, backend(), problem);
      EXPECT_TRUE(cases::is_close(r.out, expected.out, tolerance));
      EXPECT_TRUE(cases::is_close(r.lse, expected.lse, 1e-5));
      EXPECT_TRUE(cases::is_close(r.dq, expected.dq, tolerance));
      EXPECT_TRUE(cases::is_close(r.dk, expected.dk, tolerance));
      EXPECT_TRUE(cases::is_close(r.dv, expected.dv, tolerance));
    }
  }
}

TEST_P(ChoiceOptionsTest, EverySetOfOptionsChoosesTheBest) {
  for (DType dtype : dtypes()) {
    Problem problem(one_sequence(700, dtype));
    for (const AttentionOptions& options : option_sets(problem.options)) {
      SCOPED_TRACE(text_of(options) + " " + name_of(dtype));
      problem.options = options;
      expect_best_blocks(problem, cases::choose(context, backend(), problem));
      if (HasFatalFailure()) return;
    }
  }
}

// Representatives in float32 beside bfloat16 keys: the choice that float32 copies of q and k lead to, and not the one
// of rounded means.
TEST_P(ChoiceOptionsTest, WideRepresentativesChooseAsWideKeysDo) {
  for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    const Problem problem(one_sequence(800, dtype));
    AttentionOptions wide = problem.options;
    wide.representative_dtype = RepresentativeDType::kFloat32;
    const cases::Choice choice = choose(problem, wide);
    EXPECT_TRUE(cases::same_bits(choice.list, choose(problem.to(DType::kFloat32), problem.options).list));
    if (dtype == DType::kBFloat16) {
      EXPECT_FALSE(cases::same_bits(choice.list, choose(problem, problem.options).list));
    }
  }
  const Problem problem(one_sequence(300, DType::kFloat32));
  AttentionOptions wide = problem.options;
  wide.representative_dtype = RepresentativeDType::kFloat32;
  EXPECT_TRUE(cases::same_bits(choose(problem, wide).list, choose(problem, problem.options).list));
}

TEST_P(ChoiceOptionsTest, WideMeansAreTheUnroundedOnes) {
  for (DType dtype : dtypes()) {
    const Problem problem(one_sequence(61, dtype)), copy = problem.to(DType::kFloat32);
    const std::int64_t rows = block_rows(61, 1, 8);
    HostTensor wide(DType::kFloat32, {rows, 2, 24}), expected(DType::kFloat32, {rows, 2, 24});
    pool(context, backend(), {problem.k.view(), problem.batch(), 8, wide.view()});
    pool(context, reference_backend(), {copy.k.view(), copy.batch(), 8, expected.view()});
    EXPECT_TRUE(cases::same_bits(wide, expected));
    // Scores with them: the products of float32 copies.
    HostTensor scores(DType::kFloat32, {61, 4, 8}), expected_scores(DType::kFloat32, {61, 4, 8});
    score(context, backend(), {problem.q.view(), wide.view(), problem.batch(), 8, scores.view()});
    score(context, backend(), {copy.q.view(), wide.view(), copy.batch(), 8, expected_scores.view()});
    EXPECT_TRUE(cases::same_bits(scores, expected_scores));
  }
}

// Rows at the end of the keys, as a chunk of a prefill and as single tokens have them, choose what one shot chooses.
TEST_P(ChoiceOptionsTest, FewRowsChooseAsManyDo) {
  for (DType dtype : dtypes()) {
    Problem whole(one_sequence(600, dtype));
    for (const AttentionOptions& options : option_sets(whole.options)) {
      whole.options = options;
      const cases::Choice all = cases::choose(context, backend(), whole);
      for (std::int64_t rows : {1, 4, 5, 70}) {
        SCOPED_TRACE(text_of(options) + " " + name_of(dtype) + " rows " + std::to_string(rows));
        Problem last = whole;
        const std::int64_t row_size = whole.heads() * whole.head_dim(), skipped = whole.rows() - rows;
        last.q = HostTensor(dtype, {rows, whole.heads(), whole.head_dim()});
        for (std::int64_t i = 0; i < last.q.numel(); ++i) last.q.set(i, whole.q.get(skipped * row_size + i));
        last.cu_seqlens_q = cases::offsets_of({rows});
        last.max_seqlen_q = rows;
        const cases::Choice choice = cases::choose(context, backend(), last);
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t list = 0; list < choice.selection.selection_heads(); ++list) {
            ASSERT_EQ(list_of(choice, r, list), list_of(all, skipped + r, list)) << "row " << skipped + r;
          }
        }
      }
    }
  }
}

TEST_P(ChoiceOptionsTest, ListsAreTheSameForAnyThreadsAndWorkspace) {
  Problem problem(one_sequence(600, DType::kBFloat16));
  for (const AttentionOptions& options : option_sets(problem.options)) {
    problem.options = options;
    const cases::Choice one = cases::choose(context, backend(), problem);
    TestContext lent(3);
    lent.limit = 400'000;
    EXPECT_TRUE(cases::same_bits(cases::choose(lent, backend(), problem).list, one.list)) << text_of(options);
  }
}

// What a head cannot score is chosen by no list that it shares, however the others score it; unless it is forced.
TEST_P(ChoiceOptionsTest, BlocksThatAreNotNumbersAreChosenByForceOnly) {
  for (DType dtype : dtypes()) {
    Problem problem(one_sequence(100, dtype));
    problem.options.top_k = 12;
    // Block 3, key/value head 1: NaN for the query heads 2 and 3.
    problem.k.set((3 * 8 * 2 + 1) * 24, std::numeric_limits<double>::quiet_NaN());
    for (ShareScore way : kWays) {
      AttentionOptions options = problem.options;
      options.share = Share::kLayer;
      options.share_score = way;
      const std::vector<std::int32_t> last = list_of(choose(problem, options), 99, 0);
      EXPECT_EQ(last, (std::vector<std::int32_t>{0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11})) << name_of(way);
      options.sink_blocks = 4;
      EXPECT_EQ(list_of(choose(problem, options), 99, 0)[3], 3) << name_of(way);
      options.sink_blocks = 0;
      options.force_previous = true;
      EXPECT_EQ(list_of(choose(problem, options), 4 * 8, 0)[3], 3) << name_of(way);
    }
  }
}

// -inf from one head of many is no bar but to the sum; from all it is.
TEST_P(ChoiceOptionsTest, MinusInfinityFromEveryHeadIsNeverChosen) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const bool every_head : {false, true}) {
    Problem problem(one_sequence(100, DType::kFloat32));
    problem.options.top_k = 12;
    for (std::int64_t i = 0; i < problem.q.numel(); ++i) problem.q.set(i, std::fabs(problem.q.get(i)) + 0.1);
    problem.k.set((3 * 8 * 2 + 1) * 24, -kInfinity);
    if (every_head) problem.k.set(3 * 8 * 2 * 24, -kInfinity);
    for (ShareScore way : kWays) {
      AttentionOptions options = problem.options;
      options.share = Share::kLayer;
      options.share_score = way;
      const bool chosen = list_of(choose(problem, options), 99, 0)[3] == 3;
      EXPECT_EQ(chosen, !every_head && way != ShareScore::kSumLogit) << name_of(way) << " " << every_head;
    }
  }
}

// Token by token and in chunks from a cache: the rows of one shot.
TEST_P(ChoiceOptionsTest, DecodeEqualsPrefill) {
  for (DType dtype : dtypes()) {
    Problem problem(one_sequence(75, dtype));
    problem.options.top_k = 4;
    const std::int64_t heads = 4, dim = 24, value_dim = 16, capacity = 80;
    for (const AttentionOptions& options : option_sets(problem.options)) {
      SCOPED_TRACE(text_of(options) + " " + name_of(dtype));
      problem.options = options;
      const cases::Results whole = cases::run(context, backend(), problem, false);
      const bool wide = options.representative_dtype == RepresentativeDType::kFloat32;
      HostTensor k(dtype, {capacity, 2, dim}), v(dtype, {capacity, 2, value_dim});
      HostTensor means(wide ? DType::kFloat32 : dtype, {block_rows(capacity, 1, 8), 2, dim});
      HostTensor sum(DType::kFloat32, {2, dim});
      KvCache cache{k.view(), v.view(), means.view(), sum.view(), 8, 0};
      const auto rows = [](TensorView view, std::int64_t begin, std::int64_t count) {
        view.data = static_cast<std::byte*>(view.data) + begin * view.stride[0] * size_of(view.dtype);
        view.shape[0] = count;
        return view;
      };
      const double unit = dtype == DType::kBFloat16 ? 0x1p-7 : dtype == DType::kFloat16 ? 0x1p-10 : 4e-6;
      const std::int64_t steps[] = {30, 1, 1, 9, 1, 20, 1, 12};
      for (std::int64_t step : steps) {
        const std::int64_t begin = cache.length;
        append(context, backend(), cache, rows(problem.k.view(), begin, step), rows(problem.v.view(), begin, step));
        if (step == 9) {  // back into a block that was closed, and again
          truncate(context, backend(), cache, begin + 2);
          append(context, backend(), cache, rows(problem.k.view(), begin + 2, 7), rows(problem.v.view(), begin + 2, 7));
        }
        HostTensor out(dtype, {step, heads, value_dim}), lse(DType::kFloat32, {heads, step});
        attend_cached(context, backend(), cache, options, rows(problem.q.view(), begin, step),
                      {out.view(), lse.view()});
        for (std::int64_t i = 0; i < out.numel(); ++i) {
          const double expected = whole.out.get(begin * heads * value_dim + i);
          ASSERT_NEAR(out.get(i), expected, unit * std::max(1.0, std::fabs(expected))) << "row " << begin;
        }
      }
    }
  }
}

TEST_P(ChoiceOptionsTest, RefusesWhatDoesNotFit) {
  const auto message = [&](const std::function<void(AttentionOptions&)>& change) {
    AttentionOptions options;
    change(options);
    try {
      plan_selection(options, 10, 4, 2);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(message([](AttentionOptions& o) { o.sink_blocks = 2; }), "");
  EXPECT_NE(
      message([](AttentionOptions& o) { o.sink_blocks = 3; }).find("sink_blocks is 3; it must be between 0 and 2"),
      std::string::npos);
  EXPECT_NE(message([](AttentionOptions& o) { o.sink_blocks = -1; }).find("sink_blocks is -1"), std::string::npos);
  EXPECT_NE(message([](AttentionOptions& o) { o.top_k = 1, o.force_previous = true; }).find("force_previous"),
            std::string::npos);
  EXPECT_NE(message([](AttentionOptions& o) {
              o.top_k = 2, o.force_previous = true, o.sink_blocks = 1;
            }).find("between 0 and 0"),
            std::string::npos);
  EXPECT_THROW(share_from_name("row"), Error);
  EXPECT_THROW(share_score_from_name(""), Error);
  EXPECT_THROW(representative_dtype_from_name("bfloat16"), Error);
  for (Share share : {Share::kHead, Share::kGroup, Share::kLayer}) EXPECT_EQ(share_from_name(name_of(share)), share);
  for (ShareScore way : kWays) EXPECT_EQ(share_score_from_name(name_of(way)), way);

  // A cache of rounded means, asked for wide ones; a list too short for what is forced.
  Problem problem(one_sequence(40, DType::kBFloat16));
  HostTensor k(DType::kBFloat16, {40, 2, 24}), v(DType::kBFloat16, {40, 2, 16});
  HostTensor means(DType::kBFloat16, {6, 2, 24}), sum(DType::kFloat32, {2, 24});
  KvCache cache{k.view(), v.view(), means.view(), sum.view(), 8, 0};
  append(context, backend(), cache, problem.k.view(), problem.v.view());
  HostTensor out(DType::kBFloat16, {40, 4, 16}), lse(DType::kFloat32, {4, 40});
  AttentionOptions options = problem.options;
  options.representative_dtype = RepresentativeDType::kFloat32;
  EXPECT_THROW(attend_cached(context, backend(), cache, options, problem.q.view(), {out.view(), lse.view()}), Error);
  cases::Choice choice;
  choice.list = HostTensor(DType::kInt32, {40, 4, 1});
  choice.selection.kind = SelectionKind::kList;
  choice.selection.block_size = 8;
  choice.selection.blocks = choice.list.view();
  options = problem.options;
  options.sink_blocks = 2;
  EXPECT_THROW(
      select(context, backend(), options, problem.q.view(), problem.k.view(), {}, problem.batch(), choice.selection),
      Error);
}

INSTANTIATE_TEST_SUITE_P(All, ChoiceOptionsTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace moba::test
