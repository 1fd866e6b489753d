#include "lm/data/token_store.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <set>
#include <thread>

#include "lm/data/batch.h"
#include "lm/data/prefetch.h"
#include "lm/tokenizer/tokenizer.h"
#include "train_support.h"

namespace moba::lm {
namespace {

using testing::error_of;
using testing::TemporaryFolder;
using testing::write_text;

TokenStore byte_store(const TemporaryFolder& folder, const std::vector<std::filesystem::path>& paths) {
  return TokenStore::open_or_build(list_text_files(paths, "data.train"), *make_byte_tokenizer(), "bytes",
                                   folder / "cache", {});
}

// A tokenizer with more than 65536 ids and both special tokens: letter c is token 70000 + c.
class WideTokenizer : public Tokenizer {
 public:
  std::int64_t vocab_size() const override { return 80000; }
  std::vector<std::int64_t> encode(std::string_view text) const override {
    std::vector<std::int64_t> tokens;
    for (const char c : text) tokens.push_back(70000 + static_cast<unsigned char>(c));
    return tokens;
  }
  std::string decode(const std::vector<std::int64_t>&) const override { return {}; }
  std::string decode_piece(std::int64_t) const override { return {}; }
  std::vector<std::int64_t> empty_prompt() const override { return {1}; }
  std::vector<std::int64_t> prompt_prefix() const override { return {1}; }
  std::int64_t end_token() const override { return 2; }
};

TEST(TextFiles, FindsAndNamesMistakes) {
  const TemporaryFolder folder;
  write_text(folder / "a/b/2.txt", "two");
  write_text(folder / "a/1.txt", "one");
  write_text(folder / "a/empty.txt", "");
  write_text(folder / "a/other.md", "no");
  write_text(folder / "empty.txt", "");
  std::filesystem::create_directories(folder / "none");
  const std::vector<TextFile> files = list_text_files({folder / "a", folder / "a/other.md"}, "data.train");
  ASSERT_EQ(files.size(), 3u);
  EXPECT_EQ(files[0].path, folder / "a/1.txt");
  EXPECT_EQ(files[1].path, folder / "a/b/2.txt");
  EXPECT_EQ(files[2].size, 2);
  EXPECT_HAS(error_of([&] { list_text_files({folder / "gone"}, "data.train"); }), "does not exist");
  EXPECT_HAS(error_of([&] { list_text_files({folder / "none"}, "data.train"); }), "no *.txt");
  EXPECT_HAS(error_of([&] { list_text_files({folder / "empty.txt"}, "data.valid"); }), "data.valid");
}

TEST(TokenStore, KeepsDocumentsApart) {
  const TemporaryFolder folder;
  write_text(folder / "1.txt", "first");
  write_text(folder / "2.txt", "second one");
  const TokenStore store = byte_store(folder, {folder.path()});
  ASSERT_EQ(store.documents(), 2);
  EXPECT_EQ(store.tokens(), 15);
  EXPECT_EQ(store.document_begin(1), 5);
  EXPECT_EQ(store.document_size(1), 10);
  EXPECT_EQ(store.document_of(4), 0);
  EXPECT_EQ(store.document_of(5), 1);
  std::vector<std::int64_t> tokens(6);
  store.read(5, tokens);
  EXPECT_EQ(tokens, (std::vector<std::int64_t>{'s', 'e', 'c', 'o', 'n', 'd'}));
  EXPECT_EQ(store.bytes().size(), 15u);
}

TEST(TokenStore, WideTokensAndSpecialTokens) {
  const TemporaryFolder folder;
  write_text(folder / "1.txt", "ab");
  const TokenStore store = TokenStore::open_or_build(list_text_files({folder / "1.txt"}, "data.train"), WideTokenizer(),
                                                     "wide", folder / "cache", {});
  std::vector<std::int64_t> tokens(4);
  ASSERT_EQ(store.tokens(), 4);
  store.read(0, tokens);
  EXPECT_EQ(tokens, (std::vector<std::int64_t>{1, 70000 + 'a', 70000 + 'b', 2}));
  EXPECT_TRUE(store.bytes().empty());
}

TEST(TokenStore, IsBuiltOnceAndAgainWhenTextChanges) {
  const TemporaryFolder folder;
  write_text(folder / "t/1.txt", "first");
  const auto count = [&] { return std::distance(std::filesystem::directory_iterator(folder / "cache"), {}); };
  byte_store(folder, {folder / "t"});
  const auto built = std::filesystem::last_write_time((*std::filesystem::directory_iterator(folder / "cache")).path());
  byte_store(folder, {folder / "t"});
  EXPECT_EQ(count(), 1);
  EXPECT_EQ(std::filesystem::last_write_time((*std::filesystem::directory_iterator(folder / "cache")).path()), built);
  write_text(folder / "t/1.txt", "changed");
  EXPECT_EQ(byte_store(folder, {folder / "t"}).tokens(), 7);
  EXPECT_EQ(count(), 2);
}

TEST(TokenStore, BrokenFilesAreNamed) {
  const TemporaryFolder folder;
  write_text(folder / "t/1.txt", "some text");
  byte_store(folder, {folder / "t"});
  const std::filesystem::path file = (*std::filesystem::directory_iterator(folder / "cache")).path();
  const std::string whole = testing::read_text(file);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    write_text(file, whole.substr(0, size));
    EXPECT_HAS(error_of([&] { byte_store(folder, {folder / "t"}); }), file.filename().string());
  }
  for (std::size_t at = 16; at < whole.size(); ++at) {
    std::string broken = whole;
    broken[at] = static_cast<char>(broken[at] ^ 0x40);
    write_text(file, broken);
    EXPECT_HAS(error_of([&] { byte_store(folder, {folder / "t"}); }), "token store") << at;
  }
}

PhaseConfig phase_of(std::int64_t length, std::int64_t tokens, std::int64_t micro) {
  PhaseConfig phase;
  phase.sequence_length = length;
  phase.batch_tokens = tokens;
  phase.micro_batch_tokens = micro;
  return phase;
}

// Each token's target is what follows it in its own document; no sequence spans two documents.
TEST(Batch, NeverCrossesDocuments) {
  const TemporaryFolder folder;
  // Document d holds only the letter 'a' + d, with lengths from 1 to 90.
  for (int d = 0; d < 20; ++d)
    write_text(folder / "t" / ("0" + std::to_string(10 + d) + ".txt"),
               std::string(1 + d * d / 4, static_cast<char>('a' + d)));
  const TokenStore store = byte_store(folder, {folder / "t"});
  const BatchSource source(store, {}, 7, false);
  std::int64_t several = 0;
  for (std::int64_t step = 0; step < 20; ++step) {
    const StepBatch batch = source.make(step, phase_of(64, 256, 128));
    ASSERT_EQ(batch.parts.size(), 2u);
    for (const MicroBatch& part : batch.parts) {
      const auto* tokens = part.tokens.data_ptr<std::int64_t>();
      const auto* targets = part.targets.data_ptr<std::int64_t>();
      const auto* ends = part.cu_seqlens.data_ptr<std::int32_t>();
      const std::int64_t sequences = part.cu_seqlens.size(0) - 1;
      ASSERT_EQ(ends[0], 0);
      ASSERT_EQ(ends[sequences], 128);
      several += sequences > 2;
      for (std::int64_t s = 0; s < sequences; ++s) {
        ASSERT_LT(ends[s], ends[s + 1]);
        ASSERT_LE(ends[s + 1] - ends[s], part.max_seqlen);
        for (std::int64_t i = ends[s]; i < ends[s + 1]; ++i) {
          ASSERT_EQ(tokens[i], tokens[ends[s]]);
          ASSERT_EQ(targets[i], tokens[ends[s]]);
        }
      }
      EXPECT_EQ(part.weights.sum().item<double>(), 128);
    }
    EXPECT_EQ(batch.weight_sum, 256);
    EXPECT_EQ(batch.text_tokens, 256);
    EXPECT_EQ(batch.facts, 0);
  }
  EXPECT_GT(several, 10);
}

TEST(Batch, LongDocumentsGiveOneSequenceARow) {
  const TemporaryFolder folder;
  write_text(folder / "t.txt", testing::sample_prose(3, 10000));
  const TokenStore store = byte_store(folder, {folder / "t.txt"});
  const StepBatch batch = BatchSource(store, {}, 7, false).make(0, phase_of(1024, 4096, 4096));
  EXPECT_EQ(batch.parts[0].cu_seqlens.size(0), 5);
  EXPECT_EQ(batch.parts[0].max_seqlen, 1024);
}

TEST(Batch, AnswersWeighMoreAndAreListed) {
  const TemporaryFolder folder;
  for (int d = 0; d < 3; ++d)
    write_text(folder / "t" / (std::to_string(d) + ".txt"), testing::sample_prose(static_cast<std::uint64_t>(d), 3000));
  const TokenStore store = byte_store(folder, {folder / "t"});
  RecallConfig recall;
  recall.fraction = 0.5;
  recall.answer_weight = 3;
  const BatchSource source(store, recall, 7, false);
  // 4096 is longer than any document: haystacks are joined.
  for (const std::int64_t length : {1024, 4096}) {
    std::int64_t facts = 0;
    for (std::int64_t step = 0; step < 8; ++step) {
      const StepBatch batch = source.make(step, phase_of(length, 8192, 8192));
      const MicroBatch& part = batch.parts[0];
      const torch::Tensor heavy = part.weights.eq(3).nonzero().flatten();
      EXPECT_TRUE(heavy.equal(part.answer_rows));
      EXPECT_EQ(part.answer_rows.size(0), batch.answer_tokens);
      EXPECT_EQ(part.answer_facts.size(0), batch.answer_tokens);
      EXPECT_NEAR(part.weights.sum().item<double>(), batch.weight_sum, 1e-3);
      EXPECT_EQ(part.text_mask.sum().item<double>(), static_cast<double>(batch.text_tokens));
      if (batch.facts > 0) {
        EXPECT_EQ(part.answer_facts.max().item<std::int64_t>(), batch.facts - 1);
      }
      facts += batch.facts;
    }
    EXPECT_GT(facts, 20);
  }
}

TEST(Batch, LongRowsMayHoldSeveralShorterSequences) {
  const TemporaryFolder folder;
  write_text(folder / "t.txt", testing::sample_prose(3, 100000));
  const TokenStore store = byte_store(folder, {folder / "t.txt"});
  RecallConfig recall;
  recall.fraction = recall.shorter_share = 1;
  const BatchSource source(store, recall, 7, false);
  std::set<std::int64_t> lengths;
  for (std::int64_t step = 0; step < 8; ++step) {
    const MicroBatch part = source.make(step, phase_of(8192, 16384, 16384)).parts[0];
    const torch::Tensor sizes = part.cu_seqlens.diff().to(torch::kInt64);
    EXPECT_EQ(sizes.sum().item<std::int64_t>(), 16384);
    EXPECT_EQ(sizes.max().item<std::int64_t>(), part.max_seqlen);
    for (std::int64_t i = 0; i < sizes.size(0); ++i) lengths.insert(sizes[i].item<std::int64_t>());
    EXPECT_TRUE(part.weights.gt(1).nonzero().flatten().equal(part.answer_rows));
    EXPECT_GT(part.facts, 20);
  }
  EXPECT_EQ(lengths, (std::set<std::int64_t>{2048, 4096}));
  // Too short to halve.
  EXPECT_EQ(source.make(0, phase_of(2048, 16384, 16384)).parts[0].max_seqlen, 2048);
}

TEST(Batch, StepDecidesTheData) {
  const TemporaryFolder folder;
  write_text(folder / "t.txt", testing::sample_prose(3, 100000));
  const TokenStore store = byte_store(folder, {folder / "t.txt"});
  RecallConfig recall;
  recall.fraction = 0.8;
  const BatchSource one(store, recall, 7, false), two(store, recall, 7, false), other(store, recall, 8, false);
  const PhaseConfig phase = phase_of(1024, 8192, 4096);
  const StepBatch a = one.make(5, phase), b = two.make(5, phase);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(a.parts[i].tokens.equal(b.parts[i].tokens));
    EXPECT_TRUE(a.parts[i].weights.equal(b.parts[i].weights));
  }
  EXPECT_FALSE(a.parts[0].tokens.equal(one.make(6, phase).parts[0].tokens));
  EXPECT_FALSE(a.parts[0].tokens.equal(other.make(5, phase).parts[0].tokens));
  // The rows of a step do not depend on how they are cut into parts.
  EXPECT_TRUE(one.make(5, phase_of(1024, 8192, 8192)).parts[0].tokens.narrow(0, 4096, 4096).equal(a.parts[1].tokens));
}

TEST(Batch, NothingToPredictIsAnError) {
  const TemporaryFolder folder;
  write_text(folder / "t.txt", "x");
  const TokenStore store = byte_store(folder, {folder / "t.txt"});
  EXPECT_HAS(error_of([&] { BatchSource(store, {}, 0, false); }), "two tokens");
}

TEST(Prefetch, KeepsOrderAndBound) {
  std::atomic<std::int64_t> made{0}, taken{0}, most{0};
  const auto make = [&](std::int64_t step) {
    // Late and early ones mixed, so that threads overtake each other.
    std::this_thread::sleep_for(std::chrono::milliseconds(step % 3 == 0 ? 4 : 1));
    StepBatch batch;
    batch.step = step;
    most = std::max<std::int64_t>(most, ++made - taken);
    return batch;
  };
  Prefetcher prefetcher(make, 10, 60, 4, 6);
  for (std::int64_t step = 10; step < 60; ++step) {
    EXPECT_EQ(prefetcher.next().step, step);
    ++taken;
  }
  EXPECT_EQ(made, 50);
  EXPECT_LE(most, 7);  // 6 ahead, and one handed over but not yet counted
}

TEST(Prefetch, HandsOnErrorsAndStopsEarly) {
  Prefetcher prefetcher(
      [](std::int64_t step) -> StepBatch {
        if (step == 3) throw Error(ErrorCode::kInvalidArgument, "step three");
        return {};
      },
      0, 1'000'000, 2, 4);
  for (int i = 0; i < 3; ++i) prefetcher.next();
  EXPECT_HAS(error_of([&] { prefetcher.next(); }), "step three");
}

}  // namespace
}  // namespace moba::lm
