#include "lm/tokenizer/tokenizer.h"

#include <sentencepiece_trainer.h>

#include "lm/util/files.h"
#include "model_support.h"

namespace moba::lm {
namespace {

using testing::expect_error;
using testing::TempFolder;

class Sentences : public sentencepiece::SentenceIterator {
 public:
  bool done() const override { return next_ >= 200; }
  void Next() override { ++next_; }
  const std::string& value() const override { return lines_[next_ % 4]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::size_t next_ = 0;
  std::vector<std::string> lines_{"The old harbour lies behind the wall.", "A wall of stone, and a harbour of ships.",
                                  "Ships come and go; the old wall stays.",
                                  "Behind the ships the stone harbour sleeps."};
};

/// Trains a tiny model with byte fallback; returns the content of its file.
std::string train(const std::string& more_flags = "") {
  Sentences sentences;
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      "--model_type=bpe --vocab_size=320 --byte_fallback=true --character_coverage=1.0 --minloglevel=2 "
      "--num_threads=1 " +
          more_flags,
      &sentences, &model);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return model;
}

class SentencePieces : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TempFolder;
    testing::write_raw(*folder_ / "tokenizer.model", train());
    tokenizer_ = load_sentencepiece(*folder_ / "tokenizer.model").release();
  }
  static void TearDownTestSuite() {
    delete tokenizer_;
    delete folder_;
  }
  static TempFolder* folder_;
  static Tokenizer* tokenizer_;
};
TempFolder* SentencePieces::folder_ = nullptr;
Tokenizer* SentencePieces::tokenizer_ = nullptr;

TEST(Bytes, AnyBytesRoundTrip) {
  const auto tokenizer = make_byte_tokenizer();
  std::string all;
  for (int i = 255; i >= 0; --i) all += static_cast<char>(i);
  const auto tokens = tokenizer->encode(all);
  EXPECT_EQ(tokens.front(), 255);
  EXPECT_EQ(tokenizer->decode(tokens), all);
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  EXPECT_EQ(tokenizer->end_token(), -1);
  expect_error([&] { tokenizer->decode({256}); }, {"256"});
}

TEST(Bytes, PromptsHaveNoPrefixAndAnEmptyOneIsANewline) {
  const auto tokenizer = make_byte_tokenizer();
  EXPECT_EQ(encode_prompt(*tokenizer, "ab"), (std::vector<std::int64_t>{'a', 'b'}));
  EXPECT_EQ(encode_prompt(*tokenizer, ""), (std::vector<std::int64_t>{'\n'}));
}

TEST_F(SentencePieces, RoundTrip) {
  for (const std::string text : {"The old harbour", "unseen: \xC3\xA9\xF0\x9F\x98\x80!", "a"}) {
    const auto tokens = tokenizer_->encode(text);
    EXPECT_FALSE(tokens.empty());
    EXPECT_EQ(tokenizer_->decode(tokens), text);
  }
  EXPECT_TRUE(tokenizer_->encode("").empty());
  EXPECT_EQ(tokenizer_->decode({}), "");
  EXPECT_EQ(tokenizer_->vocab_size(), 320);
}

TEST_F(SentencePieces, PiecesConcatenateToTheTextInTheMiddleOfAnother) {
  std::string joined;
  for (const std::int64_t token : tokenizer_->encode("The old \xE2\x82\xAC wall"))
    joined += tokenizer_->decode_piece(token);
  EXPECT_EQ(joined, " The old \xE2\x82\xAC wall");
  EXPECT_EQ(tokenizer_->decode_piece(tokenizer_->end_token()), "");
  expect_error([&] { tokenizer_->decode_piece(320); }, {"320"});
  expect_error([&] { tokenizer_->decode_piece(-1); }, {"-1"});
}

TEST_F(SentencePieces, PromptsBeginWithBos) {
  const std::vector<std::int64_t> bos = tokenizer_->empty_prompt();
  ASSERT_EQ(bos.size(), 1u);
  EXPECT_EQ(encode_prompt(*tokenizer_, ""), bos);
  EXPECT_EQ(encode_prompt(*tokenizer_, "wall").front(), bos[0]);
  EXPECT_NE(tokenizer_->encode("wall").front(), bos[0]);
}

TEST_F(SentencePieces, InvalidUtf8IsAnError) {
  expect_error([&] { tokenizer_->encode("ab\xFF"); }, {"UTF-8", "0xFF", "offset 2"});
}

TEST(SentencePiece, WithoutBosAnEmptyPromptIsAnError) {
  const TempFolder folder;
  testing::write_raw(folder / "tokenizer.model", train("--bos_id=-1"));
  const auto tokenizer = load_sentencepiece(folder / "tokenizer.model");
  EXPECT_TRUE(tokenizer->prompt_prefix().empty());
  expect_error([&] { encode_prompt(*tokenizer, ""); }, {"prompt is empty", "BOS"});
}

TEST(SentencePiece, BrokenFilesAreNamed) {
  const TempFolder folder;
  const std::string whole = train();
  const std::vector<std::string> contents{"", "not a model", whole.substr(0, whole.size() / 2),
                                          std::string(1000, '\xFF'), std::string(1000, '\0')};
  for (const std::string& content : contents) {
    testing::write_raw(folder / "tokenizer.model", content);
    expect_error([&] { load_sentencepiece(folder / "tokenizer.model"); }, {(folder / "tokenizer.model").string()});
  }
  expect_error([&] { load_sentencepiece(folder / "absent"); }, {(folder / "absent").string(), "no such file"});
  expect_error([&] { load_sentencepiece(folder.path()); }, {folder.path().string(), "directory"});
}

}  // namespace
}  // namespace moba::lm
