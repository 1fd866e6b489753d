// What a cache in pages tells a device that the host's memory is not: which pages are new, which are copied, what is
// written, and how a call is cut into decode steps and prompts. A recorder stands in for the device.
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/paged_support.h"
#include "moba/device_pages.h"

namespace moba::test {
namespace {

using cases::HostTensor;

/// Writes down what it is asked for.
class Recorder final : public DevicePages {
 public:
  void mirror(Context&, const PagedKvCache& cache, std::span<const PageRun> runs) const override {
    if (captured) throw Error(ErrorCode::kUnsupported, "captured");
    for (const PageRun& run : runs) {
      log.push_back("mirror " + std::to_string(run.sequence) + ": " + std::to_string(run.first) + "+" +
                    std::to_string(run.count) + ", length " + std::to_string(cache.length(run.sequence)));
    }
  }
  void copy_pages(Context&, const PagedKvCache&, std::span<const PageCopy> copies) const override {
    for (const PageCopy& copy : copies) {
      log.push_back("copy " + std::to_string(copy.tokens) + " of " + std::to_string(copy.from) + " to " +
                    std::to_string(copy.to));
    }
  }
  void write(Context&, const PagedKvCache&, std::span<const SequenceTokens> parts, const ConstTensorView& k_new,
             const ConstTensorView&) const override {
    std::string line = "write " + std::to_string(k_new.shape[0]) + ":";
    for (const SequenceTokens& part : parts) {
      line += " " + std::to_string(part.sequence) + "x" + std::to_string(part.count);
    }
    log.push_back(line);
  }
  void rebuild_sums(Context&, const PagedKvCache&, std::int64_t sequence) const override {
    log.push_back("sums " + std::to_string(sequence));
  }
  void decode(Context&, const DecodeArgs& args) const override {
    std::string line = "decode";
    for (const std::int64_t sequence : args.sequences) line += " " + std::to_string(sequence);
    line += ", budget " + std::to_string(args.selection.budget()) + ", row " +
            std::to_string((static_cast<const char*>(args.q.data) - first_query) / (args.q.stride[0] * 2)) + ", lse " +
            std::to_string(args.result.lse.as<float>() - first_lse);
    log.push_back(line);
  }
  void gather(Context&, const PagedKvCache&, std::int64_t sequence, std::int64_t rows,
              const GatheredSequence& to) const override {
    log.push_back("gather " + std::to_string(sequence) + ": " + std::to_string(rows) + " of " +
                  std::to_string(to.k.shape[0]) + ", blocks " + std::to_string(to.representatives.shape[0]));
  }

  mutable std::vector<std::string> log;
  bool captured = false;
  const char* first_query = nullptr;
  const float* first_lse = nullptr;
};

class FakeDevice final : public Backend {
 public:
  const char* name() const override { return "fake"; }
  bool supports(DType dtype) const override { return dtype == DType::kBFloat16; }
  DeviceKind device() const override { return DeviceKind::kCuda; }
  const DevicePages* device_pages() const override { return &pages; }
  void pool(Context&, const PoolArgs&) const override {}
  void score(Context&, const ScoreArgs&) const override {}
  void select(Context&, const SelectArgs& args) const override {
    pages.log.push_back("select " + std::to_string(args.q.shape[0]));
  }
  void invert(Context&, const InvertArgs&) const override {}
  void attend(Context&, const AttendArgs& args) const override {
    pages.log.push_back("attend " + std::to_string(args.q.shape[0]) + " of " + std::to_string(args.k.shape[0]));
  }
  void attend_backward(Context&, const AttendBackwardArgs&) const override {}
  void merge(Context&, const MergeArgs&) const override {}

  Recorder pages;
};

TensorView on_device(TensorView view) {
  view.device = {DeviceKind::kCuda, 0};
  return view;
}

/// Two key/value heads of 8, blocks of 8 tokens in pages of 4, four sequences of up to 40 tokens.
class DevicePagesTest : public ::testing::Test {
 protected:
  DevicePagesTest()
      : pool(20),
        k(DType::kBFloat16, {80, 2, 8}),
        means(DType::kBFloat16, {20, 2, 8}),
        sums(DType::kFloat32, {4, 2, 8}),
        tables(DType::kInt32, {4, 10}),
        lengths(cases::int64_tensor({0, 0, 0, 0})) {
    cache.k = cache.v = on_device(k.view());
    cache.representatives = on_device(means.view());
    cache.running_sums = on_device(sums.view());
    cache.page_tables = tables.view();
    cache.lengths = lengths.view();
    cache.device_tables = on_device(tables.view());
    cache.device_lengths = on_device(lengths.view());
    cache.pool = &pool;
    cache.page_size = 4;
    cache.block_size = 8;
  }

  void append_tokens(const std::vector<SequenceTokens>& parts) {
    std::int64_t tokens = 0;
    for (const SequenceTokens& part : parts) tokens += part.count;
    const HostTensor fresh(DType::kBFloat16, {tokens, 2, 8});
    append(context, device, cache, parts, on_device(fresh.view()), on_device(fresh.view()));
  }
  std::vector<std::string> taken_log() { return std::exchange(device.pages.log, {}); }

  using Log = std::vector<std::string>;
  TestContext context;
  FakeDevice device;
  PagePool pool;
  HostTensor k, means, sums, tables, lengths;
  PagedKvCache cache;
};

TEST_F(DevicePagesTest, AppendTellsOfNewPagesThenWrites) {
  append_tokens({{2, 5}, {0, 4}});
  EXPECT_EQ(taken_log(), (Log{"mirror 2: 0+2, length 5", "mirror 0: 0+1, length 4", "write 9: 2x5 0x4"}));
  append_tokens({{2, 1}, {0, 1}});  // in an open page; in a new one
  EXPECT_EQ(taken_log(), (Log{"mirror 2: 2+0, length 6", "mirror 0: 1+1, length 5", "write 2: 2x1 0x1"}));
}

TEST_F(DevicePagesTest, SharedPagesAreCopiedBeforeTheyAreWritten) {
  append_tokens({{0, 6}});
  taken_log();
  fork(context, device, cache, 0, 3, 6);
  EXPECT_EQ(taken_log(), (Log{"mirror 3: 0+2, length 6", "sums 3"}));
  append_tokens({{3, 1}});
  EXPECT_EQ(taken_log(), (Log{"copy 2 of 1 to 2", "mirror 3: 1+1, length 7", "write 1: 3x1"}));
  truncate(context, device, cache, 3, 2);
  EXPECT_EQ(taken_log(), (Log{"mirror 3: 0+1, length 2", "sums 3"}));
}

TEST_F(DevicePagesTest, WhatAGraphWouldRepeatIsRefusedAndNothingChanges) {
  append_tokens({{0, 6}});
  taken_log();
  const std::int64_t free = pool.free_pages();
  device.pages.captured = true;
  const std::vector<SequenceTokens> parts = {{0, 4}};
  EXPECT_THROW(grow(context, device, cache, parts), Error);
  EXPECT_THROW(append_tokens(parts), Error);
  EXPECT_THROW(fork(context, device, cache, 0, 1, 6), Error);
  EXPECT_THROW(truncate(context, device, cache, 0, 1), Error);
  EXPECT_EQ(cache.length(0), 6);
  EXPECT_EQ(cache.length(1), 0);
  EXPECT_EQ(pool.free_pages(), free);
  const HostTensor fresh(DType::kBFloat16, {4, 2, 8});
  write(context, device, cache, parts, on_device(fresh.view()), on_device(fresh.view()));
  EXPECT_EQ(taken_log(), (Log{"write 4: 0x4"}));
}

TEST_F(DevicePagesTest, RowsBesideEachOtherAreOneStepAndPromptsAreCopiedTogether) {
  append_tokens({{0, 30}, {1, 9}, {2, 1}, {3, 17}});
  taken_log();
  const HostTensor q(DType::kBFloat16, {8, 4, 8}), out(DType::kBFloat16, {8, 4, 8}), lse(DType::kFloat32, {4, 8});
  device.pages.first_query = static_cast<const char*>(q.view().data);
  device.pages.first_lse = lse.view().as<float>();
  AttentionOptions options;
  options.block_size = 8;
  options.top_k = 3;
  const std::vector<SequenceTokens> parts = {{2, 1}, {0, 1}, {3, 5}, {1, 1}};
  attend_cached(context, device, cache, parts, options, on_device(q.view()),
                {on_device(out.view()), on_device(lse.view())});
  EXPECT_EQ(taken_log(), (Log{"decode 2 0, budget 2, row 0, lse 0", "gather 3: 5 of 17, blocks 3", "select 5",
                              "attend 5 of 17", "decode 1, budget 2, row 7, lse 7"}));
  ReadCount reads;
  EXPECT_THROW(attend_cached(context, device, cache, parts, options, on_device(q.view()),
                             {on_device(out.view()), on_device(lse.view())}, &reads),
               Error);
}

/// The halves of append, in host memory.
TEST(PagedKvCacheHalves, GrowAndWriteAreAppend) {
  cases::Case c = cases::all_cases().front();
  c.heads = 2, c.kv_heads = 1, c.head_dim = c.value_dim = 16;
  c.q_lengths = c.k_lengths = {100};
  const cases::Problem universe(c);
  TestContext context;
  PagedMemory whole(universe, {20, 4, 8, 2, 20}), halves(universe, {20, 4, 8, 2, 20});
  std::int64_t next = 0;
  for (const std::vector<SequenceTokens>& parts :
       std::vector<std::vector<SequenceTokens>>{{{0, 5}, {1, 17}}, {{1, 1}}, {{0, 3}, {1, 6}}}) {
    std::vector<std::int64_t> tokens;
    for (const SequenceTokens& part : parts) {
      for (std::int64_t i = 0; i < part.count; ++i) tokens.push_back(next++);
    }
    const HostTensor k = rows_of_tokens(universe.k, tokens), v = rows_of_tokens(universe.v, tokens);
    append(context, cpu_backend(), whole.cache, parts, k.view(), v.view());
    grow(context, cpu_backend(), halves.cache, parts);
    write(context, cpu_backend(), halves.cache, parts, k.view(), v.view());
  }
  EXPECT_TRUE(PagedSnapshot(whole).is_now(halves));
  const std::vector<SequenceTokens> too_many = {{0, 9}};
  const HostTensor k = rows_of_tokens(universe.k, {0, 1, 2, 3, 4, 5, 6, 7, 8});
  EXPECT_THROW(write(context, cpu_backend(), halves.cache, too_many, k.view(), k.view()), Error);
}

}  // namespace
}  // namespace moba::test
