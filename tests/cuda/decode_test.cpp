// A cache in pages on the GPU: its memory has the bits of a cache on the CPU to which the same was done, and decode
// steps over it are right by the definition.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cases/compare.h"
#include "cases/dense.h"
#include "cuda/device.h"
#include "moba/device_pages.h"

extern "C" const moba::Backend* moba_cuda_backend();

namespace moba::test {
namespace {

using cases::HostTensor;
using cases::Problem;
using cases::Results;

struct Layer {
  DType dtype = DType::kBFloat16;
  std::int64_t heads = 8, kv_heads = 2, dim = 128;
  std::int64_t block_size = 32, page_size = 16, top_k = 4;
  Share share = Share::kHead;
  bool force_previous = false;
  std::int64_t sink_blocks = 0;
  std::vector<std::int64_t> lengths = {0, 1, 31, 32, 33, 400, 257};

  std::int64_t sequences() const { return static_cast<std::int64_t>(lengths.size()); }
  std::int64_t capacity() const { return *std::max_element(lengths.begin(), lengths.end()) + 64; }
  AttentionOptions options() const {
    AttentionOptions options;
    options.block_size = block_size;
    options.top_k = top_k;
    options.share = share;
    options.force_previous = force_previous;
    options.sink_blocks = sink_blocks;
    return options;
  }
};

/// A cache on the CPU and one on the GPU, to which the same happens. All memory is poisoned at first.
class TwoCaches {
 public:
  explicit TwoCaches(const Layer& setup)
      : setup_(setup),
        width_((setup.capacity() + setup.page_size - 1) / setup.page_size),
        pages_(setup.sequences() * width_),
        host_pool_(pages_),
        gpu_pool_(pages_),
        k_(setup.dtype, {pages_ * setup.page_size, setup.kv_heads, setup.dim}),
        v_(setup.dtype, {pages_ * setup.page_size, setup.kv_heads, setup.dim}),
        representatives_(setup.dtype, {pages_, setup.kv_heads, setup.dim}),
        sums_(DType::kFloat32, {setup.sequences(), setup.kv_heads, setup.dim}),
        tables_(DType::kInt32, {setup.sequences(), width_}),
        tables_of_gpu_(DType::kInt32, {setup.sequences(), width_}),
        lengths_(cases::int64_tensor(std::vector<std::int64_t>(setup.lengths.size(), 0))),
        lengths_of_gpu_(cases::int64_tensor(std::vector<std::int64_t>(setup.lengths.size(), 0))),
        gpu_k_(context, k_),
        gpu_v_(context, v_),
        gpu_representatives_(context, representatives_),
        gpu_sums_(context, sums_),
        gpu_tables_(context, tables_),
        gpu_lengths_(context, lengths_),
        tokens_(setup.lengths.size()),
        random_(setup.heads * 1000 + setup.block_size + setup.dim) {
    host.k = k_.view(), host.v = v_.view(), host.representatives = representatives_.view();
    host.running_sums = sums_.view(), host.page_tables = tables_.view(), host.lengths = lengths_.view();
    host.pool = &host_pool_;
    host.page_size = setup.page_size, host.block_size = setup.block_size;
    gpu = host;
    gpu.k = gpu_k_.view(), gpu.v = gpu_v_.view(), gpu.representatives = gpu_representatives_.view();
    gpu.running_sums = gpu_sums_.view();
    gpu.page_tables = tables_of_gpu_.view(), gpu.lengths = lengths_of_gpu_.view();
    gpu.device_tables = gpu_tables_.view(), gpu.device_lengths = gpu_lengths_.view();
    gpu.pool = &gpu_pool_;
  }

  HostTensor draw(std::int64_t rows, std::int64_t heads) {
    return cases::random_tensor(random_, setup_.dtype, {rows, heads, setup_.dim});
  }

  void append_random(const std::vector<SequenceTokens>& parts) {
    std::int64_t tokens = 0;
    for (const SequenceTokens& part : parts) tokens += part.count;
    const HostTensor k = draw(tokens, setup_.kv_heads), v = draw(tokens, setup_.kv_heads);
    append(serial_, cpu_backend(), host, parts, k.view(), v.view());
    const DeviceTensor gpu_k(context, k), gpu_v(context, v);
    append(context, *moba_cuda_backend(), gpu, parts, gpu_k.view(), gpu_v.view());
    must(cudaStreamSynchronize(context.cuda_stream()), "append");
    note(parts, k, v);
  }

  /// What the sequences hold, kept apart from both caches.
  void note(const std::vector<SequenceTokens>& parts, const HostTensor& k, const HostTensor& v) {
    const std::int64_t row = setup_.kv_heads * setup_.dim;
    std::int64_t next = 0;
    for (const SequenceTokens& part : parts) {
      auto& of = tokens_[static_cast<std::size_t>(part.sequence)];
      for (std::int64_t i = 0; i < part.count * row; ++i, ++next) {
        of.k.push_back(k.get(next));
        of.v.push_back(v.get(next));
      }
    }
  }

  /// Grows all sequences to their lengths, in pieces of random sizes, so that their pages are strewn.
  void fill() {
    std::vector<std::int64_t> left = setup_.lengths;
    while (std::accumulate(left.begin(), left.end(), std::int64_t{0}) > 0) {
      std::vector<SequenceTokens> parts;
      for (std::size_t s = 0; s < left.size(); ++s) {
        const std::int64_t most = std::min<std::int64_t>(left[s], random_() % 4 == 0 ? 1 : 1 + random_() % 150);
        if (most == 0 || random_() % 3 == 0) continue;
        parts.push_back({static_cast<std::int64_t>(s), most});
        left[s] -= most;
      }
      std::shuffle(parts.begin(), parts.end(), random_);
      append_random(parts);
    }
  }

  void fork_both(std::int64_t source, std::int64_t target, std::int64_t length) {
    fork(serial_, cpu_backend(), host, source, target, length);
    fork(context, *moba_cuda_backend(), gpu, source, target, length);
    const auto values = static_cast<std::size_t>(length * setup_.kv_heads * setup_.dim);
    const auto& from = tokens_[static_cast<std::size_t>(source)];
    tokens_[static_cast<std::size_t>(target)] = {{from.k.begin(), from.k.begin() + static_cast<long>(values)},
                                                 {from.v.begin(), from.v.begin() + static_cast<long>(values)}};
  }

  void truncate_both(std::int64_t sequence, std::int64_t length) {
    truncate(serial_, cpu_backend(), host, sequence, length);
    truncate(context, *moba_cuda_backend(), gpu, sequence, length);
    const auto values = static_cast<std::size_t>(length * setup_.kv_heads * setup_.dim);
    tokens_[static_cast<std::size_t>(sequence)].k.resize(values);
    tokens_[static_cast<std::size_t>(sequence)].v.resize(values);
  }

  void expect_same_memory() {
    const auto expect = [&](const HostTensor& host_side, const DeviceTensor& gpu_side, const char* what) {
      HostTensor copy = host_side;
      gpu_side.read(copy);
      EXPECT_TRUE(cases::same_bits(copy, host_side)) << what;
    };
    expect(k_, gpu_k_, "k");
    expect(v_, gpu_v_, "v");
    expect(representatives_, gpu_representatives_, "representatives");
    expect(lengths_, gpu_lengths_, "lengths");
    // A sequence without an open block has no sum: what stands there is nobody's.
    HostTensor sums = sums_;
    gpu_sums_.read(sums);
    const std::int64_t of_sequence = setup_.kv_heads * setup_.dim;
    for (std::int64_t s = 0; s < setup_.sequences(); ++s) {
      if (host.length(s) % setup_.block_size == 0) continue;
      for (std::int64_t i = s * of_sequence; i < (s + 1) * of_sequence; ++i) {
        ASSERT_EQ(sums.get(i), sums_.get(i)) << "running sum of sequence " << s;
      }
    }
    HostTensor tables = tables_;
    gpu_tables_.read(tables);
    for (std::int64_t s = 0; s < setup_.sequences(); ++s) {
      for (std::int64_t i = 0; i < (host.length(s) + setup_.page_size - 1) / setup_.page_size; ++i) {
        EXPECT_EQ(tables.get(s * width_ + i), tables_.get(s * width_ + i)) << "page " << i << " of sequence " << s;
      }
    }
  }

  struct Step {
    Results results;
    HostTensor list;  // [rows, lists, budget]
    Selection selection;
  };

  /// A decode step of these sequences with the list that it chose.
  Step decode(const std::vector<std::int64_t>& sequences, const AttentionOptions& options, const HostTensor& q) {
    const auto rows = static_cast<std::int64_t>(sequences.size());
    Step step;
    step.selection = plan_selection(options, rows, setup_.heads, setup_.kv_heads, gpu.capacity());
    step.results.out = HostTensor(setup_.dtype, {rows, setup_.heads, setup_.dim});
    step.results.lse = HostTensor(DType::kFloat32, {setup_.heads, rows});
    step.list = HostTensor(DType::kInt32, {rows, step.selection.selection_heads(), step.selection.budget()});
    const DeviceTensor gpu_q(context, q), out(context, step.results.out), lse(context, step.results.lse);
    const DeviceTensor list(context, step.list);
    DecodeArgs args;
    args.q = gpu_q.view();
    args.cache = &gpu;
    args.sequences = sequences;
    args.selection = step.selection;
    args.selection.blocks = list.view();
    args.rule = rule_of(options, q.view());
    args.softmax_scale = args.rule.softmax_scale;
    args.result = {out.view(), lse.view()};
    moba_cuda_backend()->device_pages()->decode(context, args);
    must(cudaStreamSynchronize(context.cuda_stream()), "decode");
    out.read(step.results.out);
    lse.read(step.results.lse);
    list.read(step.list);
    step.selection.blocks = step.list.view();
    return step;
  }

  /// The sequences as packed tokens, one query row each.
  Problem problem(const std::vector<std::int64_t>& sequences, const AttentionOptions& options, const HostTensor& q) {
    Problem problem;
    problem.options = options;
    problem.q = q;
    std::vector<double> k, v;
    std::vector<std::int64_t> ones, lengths;
    for (const std::int64_t s : sequences) {
      const auto& of = tokens_[static_cast<std::size_t>(s)];
      k.insert(k.end(), of.k.begin(), of.k.end());
      v.insert(v.end(), of.v.begin(), of.v.end());
      ones.push_back(1);
      lengths.push_back(host.length(s));
    }
    const std::int64_t tokens = static_cast<std::int64_t>(k.size()) / (setup_.kv_heads * setup_.dim);
    problem.k = HostTensor(setup_.dtype, {tokens, setup_.kv_heads, setup_.dim});
    problem.v = HostTensor(setup_.dtype, {tokens, setup_.kv_heads, setup_.dim});
    problem.k.fill(k);
    problem.v.fill(v);
    // The definition is computed forward and backward at once.
    const std::int64_t rows = q.view().shape[0];
    problem.dout = draw(rows, setup_.heads);
    problem.dlse = HostTensor(DType::kFloat32, {setup_.heads, rows});
    problem.dlse.fill(std::vector<double>(static_cast<std::size_t>(setup_.heads * rows)));
    problem.cu_seqlens_q = cases::offsets_of(ones);
    problem.cu_seqlens_k = cases::offsets_of(lengths);
    problem.max_seqlen_q = 1;
    problem.max_seqlen_k = gpu.capacity();
    return problem;
  }

  /// The list is that of the reference but for near-ties, and the attention right for the list.
  void expect_right(const std::vector<std::int64_t>& sequences, const AttentionOptions& options) {
    const auto rows = static_cast<std::int64_t>(sequences.size());
    const HostTensor q = draw(rows, setup_.heads);
    const Step step = decode(sequences, options, q);
    const Problem packed = problem(sequences, options, q);
    SerialContext oracle;
    const cases::Choice choice = cases::choose(oracle, reference_backend(), packed);
    expect_near_list(packed, step, choice);
    const cases::Mask mask(packed, step.selection);
    const Results dense = cases::dense_same_precision(packed, mask), exact = cases::dense_exact(packed, mask);
    EXPECT_TRUE(cases::within_twice(step.results.out, dense.out, exact.out, 4.0)) << "out";
    EXPECT_TRUE(cases::within_twice(step.results.lse, dense.lse, exact.lse, 4.0)) << "lse";
    const Step again = decode(sequences, options, q);
    EXPECT_TRUE(cases::same_bits(step.results.out, again.results.out)) << "a second run has other bits";
    EXPECT_TRUE(cases::same_bits(step.results.lse, again.results.lse)) << "a second run has other bits";
    EXPECT_EQ(context.error_bits(), 0);
  }

  Layer setup_;
  DeviceContext context;
  PagedKvCache host, gpu;

 private:
  /// Where the lists differ, the scores of the blocks in question are as near as float32 sums are.
  void expect_near_list(const Problem& packed, const Step& step, const cases::Choice& choice) {
    const std::int64_t lists = step.selection.selection_heads(), budget = step.selection.budget();
    ASSERT_EQ(choice.selection.budget(), budget);
    const HostTensor means(setup_.dtype, {block_rows(packed.keys(), packed.batch().sequences(), setup_.block_size),
                                          setup_.kv_heads, setup_.dim});
    SerialContext oracle;
    reference_backend().pool(oracle, {packed.k.view(), packed.batch(), setup_.block_size, means.view()});
    const std::int64_t columns = (packed.max_seqlen_k + setup_.block_size - 1) / setup_.block_size;
    const HostTensor scores(DType::kFloat32, {packed.rows(), setup_.heads, columns});
    reference_backend().score(oracle,
                              {packed.q.view(), means.view(), packed.batch(), setup_.block_size, scores.view()});
    const std::int64_t per_list = setup_.heads / lists;
    for (std::int64_t i = 0; i < packed.rows() * lists; ++i) {
      const auto score = [&](std::int64_t block) {
        double sum = 0.0;
        for (std::int64_t h = 0; h < per_list; ++h) sum += scores.get((i * per_list + h) * columns + block);
        return sum;
      };
      for (std::int64_t slot = 0; slot < budget; ++slot) {
        const auto block = static_cast<std::int64_t>(step.list.get(i * budget + slot));
        const auto expected = static_cast<std::int64_t>(choice.list.get(i * budget + slot));
        if (block == expected) continue;
        ASSERT_GE(block, 0) << "list " << i << ", slot " << slot << ": nothing for " << expected;
        ASSERT_GE(expected, 0) << "list " << i << ", slot " << slot << ": " << block << " for nothing";
        EXPECT_NEAR(score(block), score(expected), 1e-5 * static_cast<double>(per_list * setup_.dim))
            << "list " << i << ", slot " << slot << ": " << block << " for " << expected;
      }
    }
  }

  struct Tokens {
    std::vector<double> k, v;
  };
  SerialContext serial_;
  std::int64_t width_, pages_;
  PagePool host_pool_, gpu_pool_;
  HostTensor k_, v_, representatives_, sums_, tables_, tables_of_gpu_, lengths_, lengths_of_gpu_;
  DeviceTensor gpu_k_, gpu_v_, gpu_representatives_, gpu_sums_, gpu_tables_, gpu_lengths_;
  std::vector<Tokens> tokens_;
  std::mt19937_64 random_;
};

std::vector<std::int64_t> everyone(const Layer& setup) {
  std::vector<std::int64_t> sequences(setup.lengths.size());
  std::iota(sequences.rbegin(), sequences.rend(), 0);
  return sequences;
}

struct Named {
  std::string name;
  Layer setup;
};

std::vector<Named> setups() {
  std::vector<Named> all;
  const auto add = [&](const std::string& name, auto&& change) {
    Layer setup;
    change(setup);
    all.push_back({name, setup});
  };
  add("gqa4", [](Layer&) {});
  add("fp16", [](Layer& s) { s.dtype = DType::kFloat16; });
  add("d64", [](Layer& s) { s.dim = 64; });
  add("d64_fp16", [](Layer& s) { s.dim = 64, s.dtype = DType::kFloat16; });
  add("mha", [](Layer& s) { s.heads = s.kv_heads = 4; });
  add("mqa8", [](Layer& s) { s.kv_heads = 1; });
  add("mqa12", [](Layer& s) { s.heads = 12, s.kv_heads = 1; });
  add("mqa24", [](Layer& s) { s.heads = 24, s.kv_heads = 1; });
  add("group", [](Layer& s) { s.share = Share::kGroup; });
  add("group12", [](Layer& s) { s.heads = 24, s.share = Share::kGroup; });
  add("layer", [](Layer& s) { s.heads = 12, s.kv_heads = 4, s.share = Share::kLayer; });
  add("one_block", [](Layer& s) { s.top_k = 1; });
  add("all_blocks", [](Layer& s) { s.top_k = 64; });
  add("forced", [](Layer& s) { s.force_previous = true, s.sink_blocks = 1; });
  add("forced_all", [](Layer& s) { s.force_previous = true, s.sink_blocks = 2, s.share = Share::kGroup; });
  add("small_pages", [](Layer& s) { s.page_size = 1; });
  add("odd", [](Layer& s) { s.block_size = 51, s.page_size = 17, s.lengths = {50, 51, 52, 340, 0, 1000}; });
  add("block16", [](Layer& s) { s.block_size = 16, s.top_k = 33, s.lengths = {900, 15, 16, 17, 1111}; });
  add("block128", [](Layer& s) { s.block_size = 128, s.page_size = 64, s.lengths = {128, 127, 129, 3000}; });
  add("one_sequence", [](Layer& s) { s.block_size = 16, s.top_k = 8, s.lengths = {5000}; });
  add("wide_union", [](Layer& s) {
    s.heads = 16, s.kv_heads = 1, s.block_size = 16, s.top_k = 64, s.lengths = {6000, 2500};
  });
  add("many", [](Layer& s) {
    s.heads = s.kv_heads = 2, s.dim = 64, s.lengths.clear();
    for (std::int64_t i = 0; i < 600; ++i) s.lengths.push_back(i % 150);
  });
  return all;
}

class CudaDecode : public ::testing::TestWithParam<Named> {};

TEST_P(CudaDecode, IsRightByTheDefinition) {
  TwoCaches caches(GetParam().setup);
  caches.fill();
  caches.expect_same_memory();
  caches.expect_right(everyone(caches.setup_), caches.setup_.options());
}

INSTANTIATE_TEST_SUITE_P(All, CudaDecode, ::testing::ValuesIn(setups()),
                         [](const auto& test) { return test.param.name; });

TEST(CudaPages, ForkTruncateAndCopyOnWrite) {
  Layer setup;
  setup.lengths = {150, 0, 0, 77};
  TwoCaches caches(setup);
  caches.fill();
  caches.fork_both(0, 1, 150);
  caches.fork_both(0, 2, 100);
  caches.expect_same_memory();
  caches.append_random({{1, 1}, {0, 3}, {2, 40}});  // pages that are shared and not full
  caches.expect_same_memory();
  caches.truncate_both(0, 70);
  caches.truncate_both(3, 0);
  caches.expect_same_memory();
  caches.append_random({{3, 33}, {0, 64}, {1, 31}});
  caches.expect_same_memory();
  caches.expect_right({2, 0, 3, 1}, setup.options());
}

/// Memory that nobody wrote is NaN; a block that only one head chose may be so too.
TEST(CudaDecodeNumbers, NanOfABlockReachesOnlyTheHeadsThatChoseIt) {
  Layer setup;
  setup.lengths = {400};
  setup.heads = 8, setup.kv_heads = 1, setup.top_k = 2;
  TwoCaches caches(setup);
  caches.fill();
  const HostTensor q = caches.draw(1, setup.heads);
  const auto before = caches.decode({0}, setup.options(), q);
  const auto chosen = static_cast<std::int64_t>(before.list.get(0));
  const std::int32_t page = caches.host.page_tables.as<std::int32_t>()[chosen * setup.block_size / setup.page_size];
  char* const values = static_cast<char*>(caches.gpu.v.data) + page * setup.page_size * setup.dim * 2;
  must(cudaMemset(values, 0xff, static_cast<std::size_t>(setup.dim * 2)), "cudaMemset");
  const auto after = caches.decode({0}, setup.options(), q);
  for (std::int64_t head = 0; head < setup.heads; ++head) {
    const bool chose = static_cast<std::int64_t>(before.list.get(head)) == chosen;
    for (std::int64_t i = head * setup.dim; i < (head + 1) * setup.dim; ++i) {
      if (chose) {
        ASSERT_TRUE(std::isnan(after.results.out.get(i))) << "head " << head;
      } else {
        ASSERT_EQ(after.results.out.get(i), before.results.out.get(i)) << "head " << head;
      }
    }
  }
}

/// Every head chooses the same blocks.
TEST(CudaDecodeChoice, AllHeadsAgree) {
  Layer setup;
  setup.lengths = {600, 90};
  TwoCaches caches(setup);
  caches.fill();
  HostTensor q = caches.draw(2, setup.heads);
  for (std::int64_t i = 0; i < q.numel(); ++i)
    q.set(i, q.get(i / (setup.heads * setup.dim) * setup.heads * setup.dim + i % setup.dim));
  const auto step = caches.decode({0, 1}, setup.options(), q);
  const Problem packed = caches.problem({0, 1}, setup.options(), q);
  const cases::Mask mask(packed, step.selection);
  const Results dense = cases::dense_same_precision(packed, mask), exact = cases::dense_exact(packed, mask);
  EXPECT_TRUE(cases::within_twice(step.results.out, dense.out, exact.out, 4.0));
}

/// attend_cached: decode rows between parts of several rows, in one call; kind full; what it refuses.
TEST(CudaAttendCached, RowsOfManyParts) {
  Layer setup;
  setup.lengths = {300, 65, 1, 200};
  TwoCaches caches(setup);
  caches.fill();
  for (const Kind kind : {Kind::kMoba, Kind::kFull}) {
    AttentionOptions options = setup.options();
    options.kind = kind;
    const std::vector<SequenceTokens> parts = kind == Kind::kFull
                                                  ? std::vector<SequenceTokens>{{1, 1}, {3, 1}, {0, 0}, {2, 1}}
                                                  : std::vector<SequenceTokens>{{1, 1}, {3, 1}, {0, 40}, {2, 1}};
    const std::int64_t rows = kind == Kind::kFull ? 3 : 43;
    const HostTensor q = caches.draw(rows, setup.heads);
    HostTensor out(setup.dtype, {rows, setup.heads, setup.dim}), lse(DType::kFloat32, {setup.heads, rows});
    HostTensor expected = out, expected_lse = lse;
    SerialContext serial;
    attend_cached(serial, reference_backend(), caches.host, parts, options, q.view(),
                  {expected.view(), expected_lse.view()});
    const DeviceTensor gpu_q(caches.context, q), gpu_out(caches.context, out), gpu_lse(caches.context, lse);
    attend_cached(caches.context, *moba_cuda_backend(), caches.gpu, parts, options, gpu_q.view(),
                  {gpu_out.view(), gpu_lse.view()});
    must(cudaStreamSynchronize(caches.context.cuda_stream()), "attend_cached");
    gpu_out.read(out);
    gpu_lse.read(lse);
    EXPECT_TRUE(cases::is_close(out, expected, 0x1p-7));
    EXPECT_TRUE(cases::is_close(lse, expected_lse, 1e-4));
  }
  AttentionOptions window;
  window.kind = Kind::kWindow;
  window.window = 10;
  const HostTensor q = caches.draw(1, setup.heads);
  const DeviceTensor gpu_q(caches.context, q), out(caches.context, q);
  const DeviceTensor lse(caches.context, HostTensor(DType::kFloat32, {setup.heads, 1}));
  const std::vector<SequenceTokens> parts = {{0, 1}};
  EXPECT_THROW(attend_cached(caches.context, *moba_cuda_backend(), caches.gpu, parts, window, gpu_q.view(),
                             {out.view(), lse.view()}),
               Error);
}

/// One graph of a step, replayed while the sequences grow across blocks and pages.
TEST(CudaDecodeGraph, FollowsACacheThatGrows) {
  Layer setup;
  setup.lengths = {100, 30, 1};
  TwoCaches caches(setup);
  caches.fill();
  DeviceContext& context = caches.context;
  const Backend& backend = *moba_cuda_backend();
  const std::vector<SequenceTokens> parts = {{0, 1}, {1, 1}, {2, 1}};
  const HostTensor first_k = caches.draw(3, setup.kv_heads), q = caches.draw(3, setup.heads);
  const DeviceTensor k(context, first_k), v(context, first_k), gpu_q(context, q);
  HostTensor results(setup.dtype, {3, setup.heads, setup.dim}), lse(DType::kFloat32, {setup.heads, 3});
  const DeviceTensor out(context, results), gpu_lse(context, lse), eager(context, results);
  const AttentionOptions options = setup.options();

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t step = nullptr;
  must(cudaStreamBeginCapture(context.cuda_stream(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  EXPECT_THROW(grow(context, backend, caches.gpu, parts), Error);
  EXPECT_EQ(caches.gpu.length(0), 100);
  write(context, backend, caches.gpu, parts, k.view(), v.view());
  attend_cached(context, backend, caches.gpu, parts, options, gpu_q.view(), {out.view(), gpu_lse.view()});
  must(cudaStreamEndCapture(context.cuda_stream(), &graph), "cudaStreamEndCapture");
  must(cudaGraphInstantiate(&step, graph, 0), "cudaGraphInstantiate");

  SerialContext serial;
  for (int i = 0; i < 70; ++i) {
    const HostTensor new_k = caches.draw(3, setup.kv_heads), new_v = caches.draw(3, setup.kv_heads);
    const auto bytes = static_cast<std::size_t>(new_k.numel() * 2);
    must(cudaMemcpy(k.view().data, new_k.view().data, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    must(cudaMemcpy(v.view().data, new_v.view().data, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    append(serial, cpu_backend(), caches.host, parts, new_k.view(), new_v.view());
    grow(context, backend, caches.gpu, parts);
    must(cudaGraphLaunch(step, context.cuda_stream()), "cudaGraphLaunch");
    must(cudaStreamSynchronize(context.cuda_stream()), "replay");
    if (i % 23 != 0) continue;
    out.read(results);
    attend_cached(context, backend, caches.gpu, parts, options, gpu_q.view(), {eager.view(), gpu_lse.view()});
    HostTensor expected = results;
    eager.read(expected);
    EXPECT_TRUE(cases::same_bits(results, expected)) << "step " << i;
    HostTensor reference = results;
    attend_cached(serial, reference_backend(), caches.host, parts, options, q.view(), {reference.view(), lse.view()});
    EXPECT_TRUE(cases::is_close(results, reference, 0x1p-7)) << "step " << i;
  }
  caches.expect_same_memory();
  cudaGraphExecDestroy(step);
  cudaGraphDestroy(graph);
}

}  // namespace
}  // namespace moba::test
