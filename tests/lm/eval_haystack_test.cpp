// Where sentences go in real text, and that a haystack has exactly the tokens it should.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "lm/data/random.h"
#include "lm/eval/haystack.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

std::string prose(int sentences) {
  std::string text;
  for (int i = 0; i < sentences; ++i) text += "The number " + std::to_string(i) + " stands alone here. ";
  return text;
}

/// Counts words and the spaces between them: texts do not come out even, as with a real merging tokenizer.
class WordTokenizer : public Tokenizer {
 public:
  std::int64_t vocab_size() const override { return 1 << 20; }
  std::vector<std::int64_t> encode(std::string_view text) const override {
    std::vector<std::int64_t> tokens;
    std::size_t begin = 0;
    while (begin < text.size()) {
      const bool space = text[begin] == ' ';
      std::size_t end = begin + 1;
      while (end < text.size() && (text[end] == ' ') == space) ++end;
      tokens.push_back(number_of(std::string(text.substr(begin, end - begin))));
      begin = end;
    }
    return tokens;
  }
  std::string decode(const std::vector<std::int64_t>& tokens) const override {
    std::string text;
    for (std::int64_t token : tokens) text += pieces_[static_cast<std::size_t>(token)];
    return text;
  }
  std::string decode_piece(std::int64_t token) const override { return pieces_[static_cast<std::size_t>(token)]; }
  std::vector<std::int64_t> empty_prompt() const override { return {0}; }
  std::vector<std::int64_t> prompt_prefix() const override { return {0}; }
  std::int64_t end_token() const override { return -1; }

 private:
  std::int64_t number_of(const std::string& piece) const {
    for (std::size_t i = 1; i < pieces_.size(); ++i) {
      if (pieces_[i] == piece) return static_cast<std::int64_t>(i);
    }
    pieces_.push_back(piece);
    return static_cast<std::int64_t>(pieces_.size()) - 1;
  }
  mutable std::vector<std::string> pieces_ = {""};
};

TEST(InsertionPoint, IsBehindTheNearestSentenceEnd) {
  const std::string text = "One thing happened. Another thing followed! Was that all? Yes, that was everything.\nEnd";
  EXPECT_EQ(insertion_point(text, 0), 0u);
  EXPECT_EQ(insertion_point(text, 10), 0u);  // no sentence has ended yet
  EXPECT_EQ(insertion_point(text, 19), 19u);
  EXPECT_EQ(insertion_point(text, 30), 19u);
  EXPECT_EQ(insertion_point(text, 43), 43u);
  EXPECT_EQ(insertion_point(text, 57), 57u);
  EXPECT_EQ(insertion_point(text, text.size()), text.find('\n'));
}

TEST(InsertionPoint, PassesOverAbbreviationsAndTakesQuotesAlong) {
  const std::string text = "It was Mrs. Dean who said \"we are leaving.\" Then they left";
  EXPECT_EQ(insertion_point(text, 20), 0u);
  EXPECT_EQ(insertion_point(text, text.size()), text.find(" Then"));
  const std::string curly = "He said \xE2\x80\x9Cnever again.\xE2\x80\x9D And went";
  EXPECT_EQ(insertion_point(curly, curly.size()), curly.find(" And"));
}

TEST(InsertionPoint, FallsBackToWhiteSpaceAndThenToACharacter) {
  std::string words(700, 'a');
  words.append(1, ' ').append(100, 'b');
  EXPECT_EQ(insertion_point(words, words.size()), 700u);
  std::string letters;
  for (int i = 0; i < 700; ++i) letters += "\xC3\xA9";  // é, two bytes, no white space anywhere
  EXPECT_EQ(insertion_point(letters, 1301), 1300u);
}

TEST(InsertSentences, KeepsTheTextAndEverySentenceWhole) {
  const std::string text = prose(200);
  std::vector<PlacedSentence> sentences;
  for (int i = 0; i <= 20; ++i) sentences.push_back({i / 20.0, "Fact " + std::to_string(i) + " is secret."});
  std::string result = insert_sentences(text, sentences, 0);
  std::size_t last = 0;
  for (const PlacedSentence& placed : sentences) {
    const std::size_t at = result.find(placed.sentence);
    ASSERT_NE(at, std::string::npos) << placed.sentence;
    EXPECT_GE(at, last);
    last = at;
    // Between sentences: at the beginning, or behind a full stop and a space.
    if (at > 0) {
      EXPECT_EQ(result.substr(at - 2, 2), ". ") << placed.sentence;
    }
    EXPECT_EQ(result[at + placed.sentence.size()], ' ');
    const double share = static_cast<double>(at) / static_cast<double>(result.size());
    EXPECT_NEAR(share, placed.position, 0.02);
  }
  for (const PlacedSentence& placed : sentences) result.erase(result.find(placed.sentence), placed.sentence.size() + 1);
  EXPECT_EQ(result, text);
}

TEST(InsertSentences, LeavesTheTailPlain) {
  const std::string text = prose(100);
  const std::string result = insert_sentences(text, {{1.0, "The last fact is here."}}, 300);
  EXPECT_LE(result.find("The last fact") + 22, result.size() - 300);
}

TEST(TextLoop, RunsOverTheEndAndSplitsNoCharacter) {
  const TextLoop loop({"abc d\xC3\xA9", "", "xyz"});
  const std::string all = "abc d\xC3\xA9\n\nxyz\n\n";
  EXPECT_EQ(loop.size(), all.size());
  EXPECT_EQ(loop.window(0, all.size()), all);
  EXPECT_EQ(loop.window(9, 8), "xyz\n\nabc");
  EXPECT_EQ(loop.window(9 + all.size(), 8), "xyz\n\nabc");
  EXPECT_EQ(loop.window(4, 2), "d");      // é would be cut in two
  EXPECT_EQ(loop.window(6, 3), "\n\nx");  // begins in the middle of é
  EXPECT_EQ(loop.window(0, 40).substr(0, 3), "abc");
  EXPECT_EQ(loop.window(0, 39).size(), 39u);
}

TEST(TextLoop, RefusesNothing) {
  EXPECT_THROW(TextLoop({}), Error);
  EXPECT_THROW(TextLoop({"", " \n"}), Error);
}

TEST(BuildHaystack, HasExactlyTheTokensAskedFor) {
  const TextLoop source({prose(50), "Eine l\xC3\xA4ngere Geschichte geht hier noch weiter. " + prose(30)});
  const auto bytes = make_byte_tokenizer();
  const WordTokenizer words;
  Random random(7, {});
  for (const Tokenizer* tokenizer : std::initializer_list<const Tokenizer*>{bytes.get(), &words}) {
    for (std::int64_t count : {400, 997, 4096, 20000}) {
      std::vector<PlacedSentence> sentences;
      for (int i = 0; i < 6; ++i)
        sentences.push_back({random.uniform(), "Fact " + std::to_string(i) + " is a secret."});
      sentences.push_back({0.0, "The first fact is early."});
      sentences.push_back({1.0, "The last fact is late."});
      const std::vector<std::int64_t> tokens =
          build_haystack(*tokenizer, source, random.below(source.size()), count, sentences, 40);
      ASSERT_EQ(static_cast<std::int64_t>(tokens.size()), count);
      const std::string text = tokenizer->decode(tokens);
      for (const PlacedSentence& placed : sentences) EXPECT_NE(text.find(placed.sentence), std::string::npos);
      const std::string without_tail = tokenizer->decode({tokens.begin(), tokens.end() - 40});
      EXPECT_NE(without_tail.find("The last fact is late."), std::string::npos) << count;
    }
  }
}

TEST(BuildHaystack, SaysWhenThereIsNoRoom) {
  const TextLoop source({prose(50)});
  const auto bytes = make_byte_tokenizer();
  std::vector<PlacedSentence> sentences(10, {0.5, "This sentence is fairly long and comes ten times."});
  try {
    build_haystack(*bytes, source, 0, 400, sentences, 20);
    FAIL() << "must throw";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("400"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("length"), std::string::npos);
  }
}

}  // namespace
}  // namespace moba::lm
