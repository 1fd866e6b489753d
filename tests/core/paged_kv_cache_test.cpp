// Pages: taken, shared, copied on write and given back, and never a difference in what attention says.
#include <random>
#include <set>

#include "core/paged_support.h"

namespace moba::test {
namespace {

using cases::Case;
using cases::HostTensor;
using cases::Problem;
using cases::Results;

/// Tokens to draw from. 16-bit ones are small whole numbers: scores are then exact and often equal, so that the choice
/// must be the reference's to the last tie.
Problem universe_of(DType dtype, std::int64_t tokens, std::int64_t block_size, std::int64_t top_k = 3) {
  Case c;
  c.dtype = dtype;
  c.options.block_size = block_size;
  c.options.top_k = top_k;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 24;
  c.value_dim = 16;
  c.q_lengths = c.k_lengths = {tokens};
  c.seed = 11;
  Problem problem(c);
  if (dtype == DType::kFloat32) return problem;
  for (HostTensor* tensor : {&problem.q, &problem.k}) {
    for (std::int64_t i = 0; i < tensor->numel(); ++i) tensor->set(i, std::round(tensor->get(i)));
  }
  return problem;
}

std::vector<std::int64_t> divisors(std::int64_t number) {
  std::vector<std::int64_t> result;
  for (std::int64_t d = 1; d <= number; ++d) {
    if (number % d == 0) result.push_back(d);
  }
  return result;
}

class PagedTest : public BackendTest {
 protected:
  /// Random operations; every state is compared with the model, and at the end all pages are free again.
  void run_operations(DType dtype, std::int64_t block_size, std::int64_t page_size, std::uint64_t seed) {
    constexpr std::int64_t kSequences = 5, kSteps = 70;
    Problem universe = universe_of(dtype, 97, block_size);
    // Every option of the choice in its turn. A mean in float32 is exact where 6 does not divide.
    universe.options.share = static_cast<Share>(seed % 3);
    universe.options.share_score = seed % 2 == 0 ? ShareScore::kMax : ShareScore::kSumLogit;
    universe.options.force_previous = seed % 4 == 1;
    universe.options.sink_blocks = seed % 5 == 0 ? 1 : 0;
    if (block_size != 6 && seed % 3 == 1) universe.options.representative_dtype = RepresentativeDType::kFloat32;
    const std::int64_t capacity = 5 * block_size + 3;
    PagedModel model(context, backend(), universe,
                     {.pages = (2 * capacity + 20) / page_size + 1,
                      .page_size = page_size,
                      .block_size = block_size,
                      .sequences = kSequences,
                      .width = (capacity + page_size - 1) / page_size});
    std::mt19937_64 random(seed);
    const auto draw = [&](std::int64_t most) {
      return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(most + 1));
    };
    const auto length = [&](std::int64_t s) { return model.memory.cache.length(s); };
    std::int64_t exhausted = 0, shared_writes = 0, next_token = 0;
    for (std::int64_t step = 0; step < kSteps && !HasFatalFailure(); ++step) {
      SCOPED_TRACE(::testing::Message() << "step " << step << " seed " << seed);
      const std::int64_t kind = draw(9);
      if (kind < 5) {  // append to some sequences
        std::vector<SequenceTokens> parts;
        for (std::int64_t s = 0; s < kSequences; ++s) {
          const std::int64_t room = model.memory.cache.capacity() - length(s);
          const std::int64_t count = std::min(room, draw(1) == 0 ? draw(2) : draw(2 * block_size));
          if (draw(1) == 0) parts.push_back({s, count});
          if (draw(1) == 0) std::reverse(parts.begin(), parts.end());
        }
        for (const SequenceTokens& part : parts) {
          const std::int64_t held = length(part.sequence);
          if (part.count > 0 && held % page_size > 0) {
            shared_writes += model.memory.pool.holders(model.memory.page(part.sequence, held / page_size)) > 1;
          }
        }
        const PagedSnapshot before(model.memory);
        try {
          model.append_tokens(parts, next_token);
          next_token += 13;
        } catch (const Error& error) {
          ASSERT_EQ(error.code(), ErrorCode::kWorkspace) << error.what();
          ASSERT_TRUE(before.is_now(model.memory));
          ++exhausted;
          const std::int64_t victim = draw(kSequences - 1);
          model.truncate_tokens(victim, 0);
        }
      } else if (kind < 7) {  // fork onto a free sequence
        const std::int64_t source = draw(kSequences - 1), target = draw(kSequences - 1);
        if (source == target) continue;
        model.truncate_tokens(target, 0);
        model.fork_tokens(source, target, draw(3) == 0 ? draw(length(source)) : length(source));
      } else if (kind < 8) {
        const std::int64_t s = draw(kSequences - 1);
        model.truncate_tokens(s, draw(2) == 0 ? draw(length(s)) : std::max<std::int64_t>(0, length(s) - draw(3)));
      } else {  // decode steps and chunks in one call
        std::vector<SequenceTokens> parts;
        for (std::int64_t s = 0; s < kSequences; ++s) {
          const std::int64_t count = draw(1) == 0 ? 1 : draw(2 * block_size);
          if (draw(2) > 0) parts.push_back({s, std::min(length(s), count)});
        }
        std::shuffle(parts.begin(), parts.end(), random);
        model.expect_attention(parts, universe.options);
      }
      ASSERT_TRUE(model.memory.counts_are_right());
    }
    if (HasFatalFailure()) return;
    for (std::int64_t s = 0; s < kSequences; ++s) {
      if (length(s) > 0) model.expect_attention({{s, length(s)}}, universe.options);
      model.truncate_tokens(s, 0);
    }
    EXPECT_EQ(model.memory.pool.free_pages(), model.memory.pool.pages());
    EXPECT_EQ(context.error_bits, 0);
    exhausted_ += exhausted;
    shared_writes_ += shared_writes;
  }

  std::int64_t exhausted_ = 0, shared_writes_ = 0;
};

TEST_P(PagedTest, RandomOperationsAgreeWithTheModel) {
  std::uint64_t seed = 1;
  for (DType dtype : dtypes()) {
    for (std::int64_t block_size : {1, 6, 16}) {
      for (std::int64_t page_size : divisors(block_size)) {
        SCOPED_TRACE(::testing::Message() << "block " << block_size << " page " << page_size);
        run_operations(dtype, block_size, page_size, seed++);
        if (HasFatalFailure()) return;
      }
    }
  }
  EXPECT_GT(exhausted_, 5) << "the pool was never exhausted";
  EXPECT_GT(shared_writes_, 20) << "hardly any shared page was written to";
}

TEST_P(PagedTest, DecodeIsPrefillForEveryPrefix) {
  for (std::int64_t block_size : {1, 6, 16}) {
    for (std::int64_t page_size : divisors(block_size)) {
      const Problem universe = universe_of(DType::kBFloat16, 70, block_size);
      PagedModel model(
          context, backend(), universe,
          {.pages = 160, .page_size = page_size, .block_size = block_size, .sequences = 2, .width = 80 / page_size});
      for (std::int64_t t = 0; t < 70; ++t) {
        model.append_tokens({{1, 1}, {0, t % 2}}, t);  // the other sequence takes pages in between
        model.expect_attention({{1, 1}}, universe.options);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(PagedTest, ChunkedPrefillIsOneShotForEveryChunkSize) {
  const Problem universe = universe_of(DType::kFloat32, 64, 8);
  for (std::int64_t page_size : {1, 4, 8}) {
    for (std::int64_t chunk = 1; chunk <= 64; ++chunk) {
      PagedModel model(context, backend(), universe,
                       {.pages = 64, .page_size = page_size, .block_size = 8, .sequences = 1, .width = 64});
      for (std::int64_t begin = 0; begin < 64; begin += chunk) {
        const std::int64_t count = std::min<std::int64_t>(chunk, 64 - begin);
        model.append_tokens({{0, count}}, begin);
        model.expect_attention({{0, count}}, universe.options);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Long enough for every kind of tile, with pages strewn over the pool; the bits of memory in one piece.
TEST_P(PagedTest, StrewnPagesHaveTheBitsOfOnePiece) {
  for (DType dtype : dtypes()) {
    for (std::int64_t page_size : {3, 20, 48, 240}) {
      Problem universe = universe_of(dtype, 1100, 240);
      PagedModel model(context, backend(), universe,
                       {.pages = 2400 / page_size + 3,
                        .page_size = page_size,
                        .block_size = 240,
                        .sequences = 2,
                        .width = 1200 / page_size});
      for (std::int64_t begin = 0; begin < 1100; begin += 50) {  // pages of the two alternate
        model.append_tokens({{0, 50}, {1, page_size}}, begin);
        if (begin % 200 == 150) model.truncate_tokens(1, 0);
      }
      for (Kind kind : {Kind::kMoba, Kind::kFull, Kind::kWindow}) {
        universe.options.kind = kind;
        universe.options.window = 301;
        universe.options.sink = 7;
        for (std::int64_t count : {1, 3, 400}) {
          const Results paged = model.attend({{0, count}}, universe.options);
          const Results whole = from_kv_cache(context, backend(), universe, universe.options, model.tokens[0], count);
          ASSERT_TRUE(cases::same_bits(paged.out, whole.out)) << "page " << page_size << " rows " << count;
          ASSERT_TRUE(cases::same_bits(paged.lse, whole.lse)) << "page " << page_size << " rows " << count;
        }
      }
    }
  }
}

TEST_P(PagedTest, SameBitsForAnyThreadCount) {
  const Problem universe = universe_of(DType::kBFloat16, 300, 16);
  std::vector<Results> results;
  for (int threads : {1, 3, 8}) {
    TestContext many(threads);
    PagedModel model(many, backend(), universe,
                     {.pages = 100, .page_size = 8, .block_size = 16, .sequences = 4, .width = 40});
    model.append_tokens({{0, 130}}, 0);
    model.fork_tokens(0, 1, 121);
    model.fork_tokens(0, 2, 130);
    // Sequence 1 holds the longer page longest: it copies nothing and writes where the others copy from.
    model.append_tokens({{0, 5}, {2, 70}, {1, 9}, {3, 33}}, 130);
    model.expect_attention({{3, 1}, {0, 1}, {1, 20}, {2, 1}}, universe.options);
    results.push_back(model.attend({{3, 1}, {0, 1}, {1, 20}, {2, 1}}, universe.options));
    EXPECT_TRUE(cases::same_bits(results.back().out, results.front().out)) << threads;
    EXPECT_TRUE(cases::same_bits(results.back().lse, results.front().lse)) << threads;
  }
}

/// Runs ranges one by one, the last one first.
class BackwardContext : public SerialContext {
 public:
  void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) override {
    for (std::int64_t begin = (count - 1) / grain * grain; count > 0 && begin >= 0; begin -= grain) {
      task(begin, std::min(count, begin + grain));
    }
  }
};

// The last holder of a page writes into it in the call in which the others copy from it, below what they copy.
TEST_P(PagedTest, CopiesComeBeforeWrites) {
  const Problem universe = universe_of(DType::kFloat32, 40, 16);
  BackwardContext backward;
  for (Context* runner : {static_cast<Context*>(&context), static_cast<Context*>(&backward)}) {
    for (bool longer_first : {true, false}) {
      PagedModel model(*runner, backend(), universe,
                       {.pages = 6, .page_size = 16, .block_size = 16, .sequences = 2, .width = 2});
      model.append_tokens({{0, 12}}, 0);
      model.fork_tokens(0, 1, 5);
      model.append_tokens(
          longer_first ? std::vector<SequenceTokens>{{0, 2}, {1, 9}} : std::vector<SequenceTokens>{{1, 9}, {0, 2}}, 12);
      EXPECT_EQ(model.memory.pool.free_pages(), 4);  // one copy, and it is the page of both no more
      model.expect_attention({{0, 14}, {1, 14}}, universe.options);
    }
  }
}

TEST_P(PagedTest, PrefixesAreSharedUntilWritten) {
  const Problem universe = universe_of(DType::kFloat32, 90, 8);
  PagedModel model(context, backend(), universe,
                   {.pages = 30, .page_size = 4, .block_size = 8, .sequences = 3, .width = 20});
  PagePool& pool = model.memory.pool;
  model.append_tokens({{0, 42}}, 0);  // 10 pages and half of another
  EXPECT_EQ(pool.free_pages(), 19);
  model.fork_tokens(0, 1, 42);
  model.fork_tokens(0, 2, 40);
  EXPECT_EQ(pool.free_pages(), 19) << "a fork takes no page";
  model.append_tokens({{2, 1}}, 50);  // begins a page of its own
  EXPECT_EQ(pool.free_pages(), 18);
  model.append_tokens({{1, 1}}, 60);  // writes into a shared page
  EXPECT_EQ(pool.free_pages(), 17);
  EXPECT_NE(model.memory.page(0, 10), model.memory.page(1, 10));
  EXPECT_EQ(model.memory.page(0, 9), model.memory.page(1, 9));
  model.append_tokens({{0, 1}}, 70);  // the page is its own again
  EXPECT_EQ(pool.free_pages(), 17);
  model.expect_attention({{0, 43}, {1, 43}, {2, 41}}, universe.options);
  model.truncate_tokens(0, 0);
  EXPECT_EQ(pool.free_pages(), 18) << "what others hold is not given back";
  model.expect_attention({{1, 43}, {2, 41}}, universe.options);
}

TEST_P(PagedTest, OtherKindsAndNoBlocks) {
  Problem universe = universe_of(DType::kFloat32, 60, 8);
  PagedModel model(context, backend(), universe,
                   {.pages = 30, .page_size = 4, .block_size = 0, .sequences = 2, .width = 15});
  model.append_tokens({{0, 31}, {1, 2}}, 0);
  universe.options.kind = Kind::kFull;
  model.expect_attention({{0, 1}, {1, 2}}, universe.options);
  universe.options.kind = Kind::kWindow;
  universe.options.window = 9;
  universe.options.sink = 2;
  model.expect_attention({{0, 31}, {1, 1}}, universe.options);
  universe.options.kind = Kind::kMoba;
  EXPECT_THROW(model.attend({{0, 1}}, universe.options), Error);
}

TEST_P(PagedTest, Errors) {
  const Problem universe = universe_of(DType::kFloat32, 60, 8);
  PagedModel model(context, backend(), universe,
                   {.pages = 6, .page_size = 4, .block_size = 8, .sequences = 3, .width = 4});
  model.append_tokens({{0, 13}}, 0);
  PagedKvCache& cache = model.memory.cache;
  const PagedSnapshot before(model.memory);
  const auto expect_error = [&](const auto& body, const std::string& text) {
    try {
      body();
      FAIL() << "no error; expected " << text;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
    EXPECT_TRUE(before.is_now(model.memory)) << text;
  };
  expect_error([&] { model.append_tokens({{0, 4}}, 0); }, "number of new tokens of sequence 0 is 4");
  expect_error([&] { model.append_tokens({{1, 12}}, 0); }, "2 free pages of 6; this call needs 3");
  expect_error([&] { model.append_tokens({{3, 1}}, 0); }, "sequence is 3");
  expect_error([&] { model.append_tokens({{1, 1}, {1, 1}}, 0); }, "sequence is 1 twice");
  expect_error([&] { model.append_tokens({{-1, 1}}, 0); }, "sequence is -1");
  expect_error([&] { model.fork_tokens(0, 1, 14); }, "length is 14");
  expect_error([&] { model.fork_tokens(0, 0, 3); }, "length of target, sequence 0, is 13");
  expect_error([&] { model.truncate_tokens(0, 14); }, "length is 14");
  expect_error([&] { model.truncate_tokens(0, -1); }, "length is -1");
  const SequenceTokens one[] = {{0, 1}}, many[] = {{0, 14}}, negative[] = {{0, -1}};
  const Results r = model.attend({{0, 1}}, universe.options);
  const auto attend_rows = [&](std::span<const SequenceTokens> parts, std::int64_t rows,
                               const AttentionOptions& options) {
    TensorView q = universe.q.view();
    q.shape[0] = rows;
    attend_cached(context, backend(), cache, parts, options, q, {r.out.view(), r.lse.view()});
  };
  expect_error([&] { attend_rows(one, 2, universe.options); }, "number of rows of q is 2");
  expect_error([&] { attend_rows(many, 14, universe.options); }, "number of rows of sequence 0 is 14");
  expect_error([&] { attend_rows(negative, 1, universe.options); }, "count of sequence 0 is -1");
  AttentionOptions other = universe.options;
  other.block_size = 4;
  expect_error([&] { attend_rows(one, 1, other); }, "block_size is 4");
  const auto expect_broken = [&](const auto& change, const std::string& text) {
    const PagedKvCache good = cache;
    change();
    expect_error([&] { truncate(context, backend(), cache, 0, 2); }, text);
    cache = good;
  };
  expect_broken([&] { cache.page_size = 3; }, "cache.block_size is 8; it must be a multiple of the page size, 3");
  expect_broken([&] { cache.page_size = 0; }, "page_size is 0");
  expect_broken([&] { cache.page_size = 2; }, "shape of cache.k is");
  expect_broken([&] { cache.pool = nullptr; }, "cache.pool is null");
  expect_broken([&] { cache.representatives = {}; }, "cache.representatives is absent");
  expect_broken([&] { cache.running_sums.dtype = DType::kBFloat16; }, "dtype of cache.running_sums");
  expect_broken([&] { cache.lengths.shape[0] = 2; }, "shape of cache.lengths");
}

// Tables come from the caller; what they say wrongly must not lead outside the pool.
TEST_P(PagedTest, WrongPagesAreClampedAndReported) {
  const Problem universe = universe_of(DType::kBFloat16, 60, 8);
  for (std::int32_t wrong : {-5, 30, 2000000000}) {
    PagedModel model(context, backend(), universe,
                     {.pages = 30, .page_size = 4, .block_size = 8, .sequences = 1, .width = 15});
    model.append_tokens({{0, 60}}, 0);
    std::int32_t* const table = model.memory.cache.page_tables.as<std::int32_t>();
    const std::int32_t right = std::exchange(table[3], wrong);
    context.error_bits = 0;
    model.attend({{0, 50}}, universe.options);
    EXPECT_EQ(context.error_bits, kPageOutOfRange);
    context.error_bits = 0;
    table[3] = right;
  }
}

/// The reference without pages.
class PackedBackend : public Backend {
 public:
  const char* name() const override { return "packed"; }
  bool supports(DType dtype) const override { return reference_backend().supports(dtype); }
  void pool(Context& c, const PoolArgs& a) const override { reference_backend().pool(c, a); }
  void score(Context& c, const ScoreArgs& a) const override { reference_backend().score(c, a); }
  void select(Context& c, const SelectArgs& a) const override { reference_backend().select(c, a); }
  void invert(Context& c, const InvertArgs& a) const override { reference_backend().invert(c, a); }
  void attend(Context& c, const AttendArgs& a) const override { reference_backend().attend(c, a); }
  void attend_backward(Context& c, const AttendBackwardArgs& a) const override {
    reference_backend().attend_backward(c, a);
  }
  void merge(Context& c, const MergeArgs& a) const override { reference_backend().merge(c, a); }
};

TEST_P(PagedTest, TablesAreChecked) {
  const Problem universe = universe_of(DType::kFloat32, 40, 8);
  PagedModel model(context, backend(), universe,
                   {.pages = 10, .page_size = 4, .block_size = 8, .sequences = 1, .width = 10});
  model.append_tokens({{0, 40}}, 0);
  const PagedKvCache& cache = model.memory.cache;
  Selection selection = plan_selection(universe.options, 40, universe.heads(), universe.kv_heads(), 40);
  const HostTensor list(DType::kInt32, {40, universe.heads(), selection.budget()});
  selection.blocks = list.view();
  const Results r = model.attend({{0, 40}}, universe.options);
  const PageTable table{cache.page_tables, 4};
  const auto choose = [&](const Backend& by, const PageTable& pages, const ConstTensorView& representatives) {
    select(context, by, universe.options, universe.q.view(), cache.k, representatives, universe.batch(), selection,
           pages);
  };
  choose(backend(), table, cache.representatives);
  const AttendArgs good{
      universe.q.view(), cache.k, cache.v, universe.batch(), selection, 0.0, {r.out.view(), r.lse.view()}, table};
  attend(context, backend(), good);
  const auto expect_error = [&](const auto& body, ErrorCode code, const std::string& text) {
    try {
      body();
      FAIL() << "no error; expected " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code);
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
  };
  const auto expect_attend = [&](const auto& change, const std::string& text) {
    AttendArgs args = good;
    change(args);
    expect_error([&] { attend(context, backend(), args); }, ErrorCode::kInvalidArgument, text);
  };
  expect_attend([](AttendArgs& a) { a.page_table.page_size = 0; }, "page_size is 0");
  expect_attend([](AttendArgs& a) { a.page_table.page_size = 5; }, "page_size is 5; it must be a divisor of the block");
  expect_attend([](AttendArgs& a) { a.k.shape[0] = a.v.shape[0] = 39; }, "number of rows of k is 39");
  expect_attend([](AttendArgs& a) { a.page_table.pages.shape[0] = 2; }, "shape of page_table.pages is [2, 10]");
  expect_attend([](AttendArgs& a) { a.page_table.pages.dtype = DType::kInt64; }, "dtype of page_table.pages");
  expect_error([&] { choose(backend(), table, {}); }, ErrorCode::kInvalidArgument, "page_table is present without");
  expect_error(
      [&] {
        choose(backend(), {cache.page_tables, 3}, cache.representatives);
      },
      ErrorCode::kInvalidArgument, "page_size is 3");
  const PackedBackend packed;
  expect_error([&] { attend(context, packed, good); }, ErrorCode::kUnsupported,
               "page_table is present; the backend 'packed'");
  expect_error([&] { choose(packed, table, cache.representatives); }, ErrorCode::kUnsupported,
               "page_table is present; the backend 'packed'");
}

INSTANTIATE_TEST_SUITE_P(All, PagedTest, ::testing::ValuesIn(backends()), backend_name);

TEST(PagePool, HandsOutEachPageOnce) {
  PagePool pool(5);
  std::int32_t pages[5];
  pool.take({pages, 3});
  EXPECT_EQ(std::vector<std::int32_t>(pages, pages + 3), (std::vector<std::int32_t>{0, 1, 2}));
  pool.share({pages, 2});
  pool.release({pages, 3});
  EXPECT_EQ(pool.free_pages(), 3);
  pool.release({pages, 2});
  EXPECT_EQ(pool.free_pages(), 5);
  pool.take(pages);
  EXPECT_EQ(std::set<std::int32_t>(pages, pages + 5).size(), 5u);
  EXPECT_EQ(pool.free_pages(), 0);
}

TEST(PagePool, ErrorsChangeNothing) {
  PagePool pool(4);
  std::int32_t pages[5] = {};
  pool.take({pages, 3});
  pool.share({pages, 1});
  const auto expect_error = [&](const auto& body, ErrorCode code, const std::string& text) {
    try {
      body();
      FAIL() << "no error; expected " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code);
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
    EXPECT_EQ(pool.free_pages(), 1);
    EXPECT_EQ(pool.holders(pages[0]), 2);
    EXPECT_EQ(pool.holders(pages[1]), 1);
    EXPECT_EQ(pool.holders(pages[2]), 1);
  };
  expect_error([&] { pool.take({pages + 3, 2}); }, ErrorCode::kWorkspace, "1 free pages of 4");
  const std::int32_t is_free[] = {pages[0], 3}, beyond[] = {pages[0], 4}, twice[] = {pages[0], pages[1], pages[1]};
  expect_error([&] { pool.share(is_free); }, ErrorCode::kInvalidArgument, "page is 3");
  expect_error([&] { pool.release(is_free); }, ErrorCode::kInvalidArgument, "page is 3");
  expect_error([&] { pool.release(beyond); }, ErrorCode::kInvalidArgument, "page is 4");
  expect_error([&] { pool.release(twice); }, ErrorCode::kInvalidArgument, "page is 1");
  EXPECT_THROW(PagePool(-1), Error);
  EXPECT_THROW(PagePool(std::int64_t{1} << 31), Error);
}

}  // namespace
}  // namespace moba::test
