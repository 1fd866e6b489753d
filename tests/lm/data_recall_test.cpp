#include "lm/data/recall.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "lm/config/phases.h"
#include "lm/data/cast.h"
#include "lm/data/facts.h"
#include "lm/data/invented.h"
#include "lm/data/patterns.h"
#include "lm/eval/needle_facts.h"
#include "train_support.h"

namespace moba::lm {
namespace {

std::span<const std::uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

struct Corpus {
  std::string text = testing::sample_prose(1, 400'000);
  Lexicon lexicon = build_lexicon(bytes_of(text));

  WovenText weave(std::uint64_t seed, std::int64_t length, const RecallConfig& config) const {
    Random random(seed, {});
    return weave_facts(random, bytes_of(text).subspan(seed % 1000), length, bytes_of(text), lexicon, config);
  }
};

TEST(Recall, LengthIsExactAndAnswersAreMarked) {
  const Corpus corpus;
  RecallConfig config;
  config.fraction = 1;
  for (const std::int64_t length :
       {kShortestRecallSequence, std::int64_t{1025}, std::int64_t{2049}, std::int64_t{16385}}) {
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
      const WovenText woven = corpus.weave(seed, length, config);
      ASSERT_EQ(static_cast<std::int64_t>(woven.text.size()), length);
      ASSERT_EQ(woven.kinds.size(), woven.text.size());
      std::vector<ByteKind> kinds = woven.kinds;
      std::int64_t last_end = 0;
      for (const ByteRange& answer : woven.answers) {
        ASSERT_GE(answer.begin, last_end);
        ASSERT_LT(answer.begin, answer.end);
        ASSERT_LE(answer.end, length);
        last_end = answer.end;
        for (std::int64_t i = answer.begin; i < answer.end; ++i) {
          ASSERT_EQ(kinds[static_cast<std::size_t>(i)], ByteKind::kAnswer);
          kinds[static_cast<std::size_t>(i)] = ByteKind::kFact;
        }
      }
      ASSERT_EQ(std::count(kinds.begin(), kinds.end(), ByteKind::kAnswer), 0) << "marked outside of every answer";
    }
  }
}

// The sentence of an answer, with its value, must stand earlier in the text: else it could not be known.
TEST(Recall, EveryAnswerStandsBefore) {
  const Corpus corpus;
  RecallConfig config;
  int answers = 0;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const WovenText woven = corpus.weave(seed, 4096, config);
    for (const ByteRange& answer : woven.answers) {
      std::int64_t begin = answer.begin;
      while (begin > 0 && woven.kinds[static_cast<std::size_t>(begin - 1)] == ByteKind::kFact) --begin;
      // The value without what ends it: a repeat may end otherwise.
      const std::string sentence =
          woven.text.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(answer.end - 1 - begin));
      const std::size_t first = woven.text.find(sentence);
      EXPECT_LT(first, static_cast<std::size_t>(begin)) << sentence;
      ++answers;
    }
  }
  EXPECT_GT(answers, 300);
}

TEST(Recall, DensityFollowsTheTable) {
  EXPECT_NEAR(usual_facts(2048), 10, 1e-9);
  EXPECT_NEAR(usual_facts(8192), 30, 1e-9);
  EXPECT_NEAR(usual_facts(65536), 120, 1e-9);
  EXPECT_GT(usual_facts(131072), 150);
  EXPECT_LT(usual_facts(1024), 6);
  const Corpus corpus;
  RecallConfig config;
  double answers = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed)
    answers += static_cast<double>(corpus.weave(seed, 16384, config).answers.size());
  EXPECT_NEAR(answers / 50, 50 * config.repeat_probability, 8);
}

TEST(Recall, RepeatsStandAtTheEndAndInside) {
  const Corpus corpus;
  RecallConfig config;
  int at_end = 0, inside = 0, after_blank_line = 0;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const WovenText woven = corpus.weave(seed, 8192, config);
    for (const ByteRange& answer : woven.answers) {
      std::size_t begin = static_cast<std::size_t>(answer.begin);
      while (begin > 0 && woven.kinds[begin - 1] == ByteKind::kFact) --begin;
      after_blank_line += begin >= 2 && woven.text.substr(begin - 2, 2) == "\n\n";
      ++(answer.end == 8192 ? at_end : inside);
    }
  }
  EXPECT_GT(at_end, 50);  // the last one of nearly every sequence
  EXPECT_GT(inside, 500);
  EXPECT_GT(after_blank_line, 500);
}

TEST(Recall, WorksOnTextWithoutSentences) {
  const Lexicon lexicon;
  RecallConfig config;
  for (const std::string& text : {std::string(5000, 'x'), std::string(5000, '\n'), std::string(5000, '\0')}) {
    Random random(3, {});
    EXPECT_EQ(weave_facts(random, bytes_of(text), 2048, bytes_of(text), lexicon, config).text.size(), 2048u);
  }
}

TEST(Recall, SameSeedSameText) {
  const Corpus corpus;
  EXPECT_EQ(corpus.weave(5, 4096, {}).text, corpus.weave(5, 4096, {}).text);
  EXPECT_NE(corpus.weave(5, 4096, {}).text, corpus.weave(6, 4096, {}).text);
}

TEST(Facts, GroupsShareTheirSentenceAndNothingElse) {
  const Corpus corpus;
  RecallConfig config;
  std::map<std::size_t, int> sizes;
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    Random random(seed, {});
    const std::vector<WovenFact> group =
        draw_fact_group(random, bytes_of(corpus.text), corpus.lexicon, Cast(random, corpus.lexicon), config);
    std::set<std::string> beginnings, values;
    for (const WovenFact& fact : group) {
      beginnings.insert(fact.beginning);
      values.insert(fact.value);
      EXPECT_FALSE(fact.value.empty());
      EXPECT_EQ(fact.terminator, group[0].terminator);
    }
    EXPECT_EQ(beginnings.size(), group.size());
    EXPECT_EQ(values.size(), group.size());
    ++sizes[group.size()];
  }
  EXPECT_EQ(sizes.count(0), 0u);
  for (std::size_t size = 1; size <= 5; ++size) EXPECT_GT(sizes[size], 10) << size;
  EXPECT_GT(sizes[4] + sizes[5], 250);
}

// A small company's names come again in other sentences; without one they hardly do.
TEST(Cast, HalfOfTheSequencesHaveASmallCompany) {
  const Corpus corpus;
  int small = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed, {});
    const Cast cast(random, corpus.lexicon);
    std::set<std::string> words;
    for (int i = 0; i < 200; ++i) {
      const std::string name = cast.draw_name(random);
      EXPECT_NE(name, "");
      const std::size_t space = name.find(' ');
      words.insert(name.substr(0, space));
      if (space != std::string::npos) words.insert(name.substr(space + 1));
    }
    small += words.size() <= 80;
  }
  EXPECT_NEAR(small, 100, 25);
}

TEST(Facts, ValuesAreOfTheirKind) {
  const Corpus corpus;
  Random random(1, {});
  std::set<std::string> words;
  std::size_t longest = 0;
  for (int i = 0; i < 1000; ++i) {
    const std::string number = draw_value(random, ValueKind::kDigits, corpus.lexicon);
    EXPECT_TRUE(number.size() >= 3 && number.size() <= 7) << number;
    EXPECT_EQ(number.find_first_not_of("0123456789"), std::string::npos) << number;
    const std::string word = draw_value(random, ValueKind::kMadeUpWord, corpus.lexicon);
    EXPECT_EQ(word.find_first_not_of("abcdefghijklmnopqrstuvwxyz", 1), std::string::npos) << word;
    words.insert(word);
    longest = std::max(longest, word.size());
    EXPECT_GE(draw_value(random, ValueKind::kCode, corpus.lexicon).size(), 4u);
  }
  EXPECT_GT(words.size(), 990u) << "made-up words come again";
  EXPECT_GT(longest, 12u);
}

TEST(Facts, KindsFollowTheirWeights) {
  RecallConfig config;
  config.digits = 0;
  config.names = 3;
  config.made_up_words = 1;
  config.dictionary_words = config.codes = 0;
  Random random(1, {});
  std::map<ValueKind, int> counts;
  for (int i = 0; i < 4000; ++i) ++counts[draw_value_kind(random, config)];
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_NEAR(counts[ValueKind::kName], 3000, 150);
}

// Half of the patterns come from real text, so that inner commas and real grammar are seen.
TEST(Patterns, RealBeginningsKeepTheirCommas) {
  std::string text;
  while (text.size() < 20000) text += "Then the old captain, who knew the harbour well, turned about. ";
  const Lexicon lexicon = build_lexicon(bytes_of(text));
  int commas = 0, real = 0, one = 0, two = 0;
  for (std::uint64_t seed = 0; seed < 600; ++seed) {
    Random random(seed, {});
    const Pattern pattern = draw_pattern(random, bytes_of(text), lexicon);
    ASSERT_EQ(pattern.parts.size(), pattern.fillers() + 1);
    ++(pattern.fillers() == 1 ? one : two);
    const std::string sentence = pattern.beginning(std::vector<std::string>(pattern.fillers(), "Zed"));
    EXPECT_NE(sentence.find("Zed"), std::string::npos);
    EXPECT_NE(sentence.back(), ' ');
    if (sentence.find("captain,") == std::string::npos && sentence.find("harbour") == std::string::npos) continue;
    ++real;
    commas += sentence.find(',') != std::string::npos;
  }
  EXPECT_GT(real, 200);
  EXPECT_GT(commas, real / 2);
  EXPECT_GT(one, 200);
  EXPECT_GT(two, 200);
}

// What is used to judge a model must not be trained on: no linking phrase of more than one word is part of an
// evaluation's sentence.
TEST(Patterns, ShareNoPhraseWithEvaluation) {
  for (const std::string_view sentence : fact_patterns()) {
    for (const std::string_view phrase : linking_phrases()) {
      if (phrase.find(' ') == std::string_view::npos) continue;
      EXPECT_EQ(sentence.find(phrase), std::string_view::npos) << phrase << " in " << sentence;
    }
  }
}

TEST(Lexicon, TellsWordsFromNames) {
  std::string text;
  while (text.size() < 5000) text += "Then Barnaby met the baker, and the baker met Barnaby again. Again they met. ";
  const Lexicon lexicon = build_lexicon(bytes_of(text));
  EXPECT_EQ(lexicon.names, std::vector<std::string>{"Barnaby"});
  EXPECT_TRUE(std::binary_search(lexicon.words.begin(), lexicon.words.end(), "baker"));
}

}  // namespace
}  // namespace moba::lm
