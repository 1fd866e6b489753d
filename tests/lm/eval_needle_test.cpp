// The facts, the prompts they make, and how answers are judged.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "lm/eval/needle.h"
#include "lm/eval/needle_trial.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

std::string prose(int sentences) {
  std::string text;
  for (int i = 0; i < sentences; ++i)
    text += "In the year " + std::to_string(1000 + i) + " nothing much happened there. ";
  return text;
}

/// The words two sentences do not share, pairwise.
int differing_words(const std::string& a, const std::string& b) {
  const auto words = [](const std::string& text) {
    std::vector<std::string> result(1);
    for (char c : text) {
      if (c == ' ') {
        result.emplace_back();
      } else {
        result.back() += c;
      }
    }
    return result;
  };
  const auto left = words(a), right = words(b);
  EXPECT_EQ(left.size(), right.size()) << a << "\n" << b;
  int count = 0;
  for (std::size_t i = 0; i < std::min(left.size(), right.size()); ++i) count += left[i] != right[i];
  return count;
}

TEST(NeedleFacts, HaveEnoughPatternsAndOneWithAComma) {
  EXPECT_GE(fact_patterns().size(), 8u);
  int commas = 0;
  for (std::string_view pattern : fact_patterns()) commas += pattern.find(", ") != std::string_view::npos;
  EXPECT_GE(commas, 1);
}

TEST(NeedleFacts, DistractorsDifferInNamesAndValueOnly) {
  FactMaker maker(Random(3, {}));
  std::set<std::string> values;
  for (std::size_t pattern = 0; pattern < fact_patterns().size(); ++pattern) {
    const FactGroup group = maker.make(pattern, 3);
    ASSERT_EQ(group.distractors.size(), 3u);
    const bool digits = std::isdigit(static_cast<unsigned char>(group.fact.value[0])) != 0;
    EXPECT_TRUE(values.insert(group.fact.value).second);
    for (const Fact& distractor : group.distractors) {
      EXPECT_TRUE(values.insert(distractor.value).second);
      EXPECT_EQ(std::isdigit(static_cast<unsigned char>(distractor.value[0])) != 0, digits);
      const int differing = differing_words(group.fact.beginning, distractor.beginning);
      EXPECT_GE(differing, 1);
      EXPECT_LE(differing, 4);  // two persons of two names
    }
  }
}

TEST(NeedleFacts, ValuesAreDigitsOrInventedWords) {
  FactMaker maker(Random(4, {}));
  int digits = 0;
  for (int i = 0; i < 200; ++i) {
    const std::string value = maker.make(static_cast<std::size_t>(i) % fact_patterns().size(), 0).fact.value;
    const bool number = std::all_of(value.begin(), value.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
    const bool word = std::all_of(value.begin(), value.end(), [](unsigned char c) { return std::islower(c) != 0; });
    EXPECT_TRUE(number || word) << value;
    if (number) {
      EXPECT_TRUE(value.size() >= 4 && value.size() <= 6 && value[0] != '0') << value;
    }
    EXPECT_LE(value.size(), kLongestValue);
    digits += number;
  }
  EXPECT_GT(digits, 60);
  EXPECT_LT(digits, 140);
}

TEST(NeedleTrial, EveryPromptHasExactlyTheLengthAndHoldsItsFact) {
  const auto tokenizer = make_byte_tokenizer();
  const TextLoop source({prose(300)});
  const NeedleOptions options{.lengths = {}, .depths = 5, .needles = 5, .distractors = 3, .seed = 11};
  for (std::int64_t length : {3000, 4096, 16384}) {
    for (std::int64_t depth = 0; depth < options.depths; ++depth) {
      const NeedleTrial trial = make_needle_trial(*tokenizer, source, options, length, depth);
      ASSERT_EQ(trial.questions.size(), 5u);
      for (const NeedleQuestion& question : trial.questions) {
        const auto asked = static_cast<std::int64_t>(question.tokens.size());
        const std::int64_t text_end = length - asked;
        ASSERT_LE(trial.common, text_end);
        ASSERT_LE(text_end, static_cast<std::int64_t>(trial.tokens.size()));
        const std::string shared = tokenizer->decode({trial.tokens.begin(), trial.tokens.begin() + trial.common});
        // The fact is in what is read once, and only there once.
        const std::string sentence = question.fact.sentence();
        const std::size_t at = shared.find(sentence);
        ASSERT_NE(at, std::string::npos) << sentence;
        EXPECT_EQ(shared.find(question.fact.beginning, at + 1), std::string::npos);
        const std::string text = tokenizer->decode(question.tokens);
        EXPECT_EQ(text, "\n\n" + question.fact.beginning);
        EXPECT_NE(text.back(), ' ');
        // Near its depth: within half a step, and one sentence and the inserted ones before it.
        const double share = static_cast<double>(at) / static_cast<double>(shared.size());
        EXPECT_NEAR(share, needle_depth(depth, options.depths), 0.125 + 1500.0 / static_cast<double>(length));
      }
    }
  }
}

TEST(NeedleTrial, IsTheSameAgainAndAnotherForAnotherSeedLengthOrDepth) {
  const auto tokenizer = make_byte_tokenizer();
  const TextLoop source({prose(300)});
  NeedleOptions options{.lengths = {}, .depths = 3, .needles = 2};
  const auto text = [&](std::int64_t length, std::int64_t depth) {
    return tokenizer->decode(make_needle_trial(*tokenizer, source, options, length, depth).tokens);
  };
  const std::string first = text(3000, 1);
  EXPECT_EQ(text(3000, 1), first);
  EXPECT_NE(text(3000, 2), first);
  EXPECT_NE(text(3001, 1).substr(0, 1000), first.substr(0, 1000));
  options.seed = 1;
  EXPECT_NE(text(3000, 1), first);
}

TEST(NeedleTrial, OneFactStandsExactlyAtItsDepth) {
  const auto tokenizer = make_byte_tokenizer();
  const TextLoop source({prose(300)});
  const NeedleOptions options{.lengths = {}, .depths = 3, .needles = 1, .distractors = 0};
  const NeedleTrial first = make_needle_trial(*tokenizer, source, options, 4096, 0);
  EXPECT_EQ(tokenizer->decode(first.tokens).find(first.questions[0].fact.sentence()), 0u);
  const NeedleTrial last = make_needle_trial(*tokenizer, source, options, 4096, 2);
  EXPECT_GT(tokenizer->decode(last.tokens).find(last.questions[0].fact.sentence()), 3700u);
}

TEST(RightAnswer, IsTheValueAndThenNoLetterOrDigit) {
  EXPECT_TRUE(is_right_answer(" 48213.\n", "48213"));
  EXPECT_TRUE(is_right_answer("48213", "48213"));
  EXPECT_TRUE(is_right_answer(" velkoru,", "velkoru"));
  EXPECT_TRUE(is_right_answer(" velkoru\n\n", "velkoru"));
  EXPECT_FALSE(is_right_answer(" 482134", "48213"));
  EXPECT_FALSE(is_right_answer(" velkorum", "velkoru"));
  EXPECT_FALSE(is_right_answer(" velkoru\xC3\xA9", "velkoru"));
  EXPECT_FALSE(is_right_answer("  48213.", "48213"));
  EXPECT_FALSE(is_right_answer(" 4821", "48213"));
  EXPECT_FALSE(is_right_answer("", "48213"));
  EXPECT_FALSE(is_right_answer(" Velkoru.", "velkoru"));
}

TEST(NeedleDepth, RunsFromBeginningToEnd) {
  EXPECT_EQ(needle_depth(0, 1), 0.5);
  EXPECT_EQ(needle_depth(0, 5), 0.0);
  EXPECT_EQ(needle_depth(2, 5), 0.5);
  EXPECT_EQ(needle_depth(4, 5), 1.0);
}

class RunNeedle : public testing::Test {
 protected:
  static ModelConfig small_config() {
    ModelConfig config;
    config.hidden_size = 32;
    config.intermediate_size = 48;
    config.num_hidden_layers = 2;
    config.num_attention_heads = config.num_key_value_heads = 2;
    config.head_dim = 16;
    return config;
  }
  RunNeedle() { model_->init_weights(1); }

  std::vector<NeedleResult> run(const NeedleOptions& options) {
    const AttentionPlan plan = uniform_plan(2, {.kind = Kind::kMoba, .block_size = 64, .top_k = 3}, 1);
    return run_needle(model_, *tokenizer_, plan, "moba", {prose(200)}, options,
                      [&](const NeedleProgress& at) { progress_.push_back(at); });
  }

  Model model_{small_config()};
  std::unique_ptr<Tokenizer> tokenizer_ = make_byte_tokenizer();
  std::vector<NeedleProgress> progress_;
};

TEST_F(RunNeedle, CountsEveryTrialOnce) {
  const auto results = run({.lengths = {2500, 3000}, .depths = 3, .needles = 4, .distractors = 1});
  ASSERT_EQ(results.size(), 6u);
  for (std::size_t i = 0; i < results.size(); ++i) {
    const NeedleResult& result = results[i];
    EXPECT_EQ(result.attention, "moba");
    EXPECT_EQ(result.length, i < 3 ? 2500 : 3000);
    EXPECT_EQ(result.depth, 0.5 * static_cast<double>(i % 3));
    EXPECT_EQ(result.trials, 4);
    EXPECT_GT(result.seconds, 0);
    // A model of random weights knows nothing.
    EXPECT_EQ(result.correct, 0);
    EXPECT_EQ(result.misses.size(), 4u);
    std::int64_t trials = 0;
    for (const PatternCount& count : result.patterns) trials += count.trials;
    EXPECT_EQ(trials, 4);
  }
  ASSERT_FALSE(progress_.empty());
  EXPECT_EQ(progress_.back().total, 3 * 2500 + 3 * 3000);
  EXPECT_LE(progress_.back().done, progress_.back().total);
}

TEST_F(RunNeedle, NamesTheOptionThatIsOutOfRange) {
  const auto message = [&](const NeedleOptions& options) -> std::string {
    try {
      run(options);
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  EXPECT_NE(message({.lengths = {}}).find("lengths"), std::string::npos);
  EXPECT_NE(message({.lengths = {0}}).find("length"), std::string::npos);
  EXPECT_NE(message({.lengths = {3000}, .depths = 0}).find("depths"), std::string::npos);
  EXPECT_NE(message({.lengths = {3000}, .needles = 0}).find("needles"), std::string::npos);
  EXPECT_NE(message({.lengths = {3000}, .distractors = -1}).find("distractors"), std::string::npos);
  EXPECT_NE(message({.lengths = {300}}).find("length"), std::string::npos);
}

}  // namespace
}  // namespace moba::lm
