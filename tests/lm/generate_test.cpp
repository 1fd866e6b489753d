#include "lm/generate/generate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "lm/generate/sampler.h"
#include "lm/generate/text_stream.h"
#include "model_support.h"

namespace moba::lm {
namespace {

using testing::expect_error;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

SamplingOptions sampling(double temperature) {
  SamplingOptions options;
  options.temperature = temperature;
  return options;
}

/// How often each token is drawn from these logits in 4000 draws, as a share.
std::map<std::int64_t, double> shares(const SamplingOptions& options, const std::vector<double>& logits) {
  constexpr int kDraws = 4000;
  Sampler sampler(options);
  const torch::Tensor row = torch::tensor(logits, torch::kFloat64);
  std::map<std::int64_t, double> found;
  for (int i = 0; i < kDraws; ++i) found[sampler.choose(row)] += 1.0 / kDraws;
  return found;
}

TEST(Sampler, GreedyTakesTheLowestOfEquals) {
  Sampler sampler(sampling(0.0));
  EXPECT_EQ(sampler.choose(torch::tensor({1.0F, 7.0F, 7.0F, 3.0F})), 1);
  EXPECT_EQ(sampler.choose(torch::full({300}, -2.5F)), 0);
  EXPECT_EQ(sampler.choose(torch::tensor({1.0F, 2.0F}).to(torch::kBFloat16)), 1);
  EXPECT_EQ(sampler.choose(torch::tensor({-kInfinity, -1.0})), 1);
}

TEST(Sampler, DrawsBySoftmaxAtTheTemperature) {
  const std::vector<double> logits{std::log(0.5), std::log(0.3), std::log(0.2)};
  auto found = shares(sampling(1.0), logits);
  EXPECT_NEAR(found[0], 0.5, 0.03);
  EXPECT_NEAR(found[1], 0.3, 0.03);
  EXPECT_NEAR(found[2], 0.2, 0.03);
  found = shares(sampling(0.5), logits);  // squares: 0.25, 0.09, 0.04 of 0.38
  EXPECT_NEAR(found[0], 0.25 / 0.38, 0.03);
}

TEST(Sampler, CutsByTopKTopPAndMinP) {
  const std::vector<double> logits{std::log(0.1), std::log(0.5), std::log(0.25), std::log(0.15)};
  SamplingOptions options = sampling(1.0);
  options.top_k = 2;
  auto found = shares(options, logits);
  EXPECT_EQ(found.size(), 2u);
  EXPECT_NEAR(found[1], 2.0 / 3.0, 0.03);
  options = sampling(1.0);
  options.top_p = 0.6;  // 0.5 is not enough, 0.5 + 0.25 is
  found = shares(options, logits);
  EXPECT_EQ(found.size(), 2u);
  EXPECT_EQ(found.count(1) + found.count(2), 2u);
  options.top_p = 1e-9;
  EXPECT_EQ(shares(options, logits).size(), 1u);
  options = sampling(1.0);
  options.min_p = 0.4;  // 0.2 and more
  found = shares(options, logits);
  EXPECT_EQ(found.size(), 2u);
  options.min_p = 1.0;
  EXPECT_EQ(shares(options, logits).size(), 1u);
}

TEST(Sampler, SeedsRepeat) {
  const torch::Tensor row = torch::zeros({256});
  SamplingOptions options = sampling(1.0);
  options.seed = 7;
  Sampler a(options), b(options);
  options.seed = 8;
  Sampler c(options);
  int differing = 0;
  for (int i = 0; i < 50; ++i) {
    const std::int64_t token = a.choose(row);
    EXPECT_EQ(token, b.choose(row));
    differing += token != c.choose(row);
  }
  EXPECT_GT(differing, 40);
}

TEST(Sampler, InfiniteLogitsAndBrokenOnes) {
  Sampler sampler(sampling(1.0));
  EXPECT_EQ(sampler.choose(torch::tensor({0.0, kInfinity, 1.0})), 1);
  EXPECT_EQ(sampler.choose(torch::tensor({-kInfinity, 0.0, -kInfinity})), 1);
  expect_error([&] { sampler.choose(torch::tensor({0.0, std::nan("")})); }, {"NaN", "token 1"});
}

TEST(Sampler, OptionsOutOfRange) {
  const auto refuse = [](const std::function<void(SamplingOptions&)>& change, const std::vector<std::string>& parts) {
    SamplingOptions options;
    change(options);
    expect_error([&] { check_sampling(options); }, parts);
  };
  refuse([](auto& o) { o.max_new_tokens = -1; }, {"max_new_tokens=-1"});
  refuse([](auto& o) { o.temperature = -0.5; }, {"temperature=-0.5"});
  refuse([](auto& o) { o.temperature = std::nan(""); }, {"temperature=nan"});
  refuse([](auto& o) { o.top_k = -2; }, {"top_k=-2"});
  refuse([](auto& o) { o.top_p = 0.0; }, {"top_p=0"});
  refuse([](auto& o) { o.top_p = 1.5; }, {"top_p=1.5"});
  refuse([](auto& o) { o.min_p = 2.0; }, {"min_p=2"});
  refuse([](auto& o) { o.stop = {"x", ""}; }, {"stop"});
}

/// Feeds the pieces; returns what was emitted after each, then what `finish` added.
std::vector<std::string> stream(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  std::string now;
  std::vector<std::string> emitted;
  TextStream text(stops, [&](std::string_view part) { now += part; });
  for (const std::string& piece : pieces) {
    const bool stopped = text.add(piece);
    emitted.push_back(now);
    now.clear();
    if (stopped) return emitted;
  }
  text.finish();
  emitted.push_back(now);
  return emitted;
}

using Pieces = std::vector<std::string>;

TEST(TextStream, EmitsAtOnceWhatIsCertain) {
  EXPECT_EQ(stream({}, {"a", "bc", ""}), (Pieces{"a", "bc", "", ""}));
}

TEST(TextStream, HoldsIncompleteCharacters) {
  EXPECT_EQ(stream({}, {"x\xE2", "\x82", "\xAC!", "\xF0\x9F"}), (Pieces{"x", "", "\xE2\x82\xAC!", "", "\xF0\x9F"}));
  EXPECT_EQ(stream({}, {"\xFF", "a"}), (Pieces{"\xFF", "a", ""}));  // never a character: nothing to wait for
}

TEST(TextStream, StopsAcrossPieces) {
  EXPECT_EQ(stream({"END"}, {"a E", "N", "D after"}), (Pieces{"a ", "", ""}));
  EXPECT_EQ(stream({"END"}, {"a E", "N", "d"}), (Pieces{"a ", "", "ENd", ""}));
  EXPECT_EQ(stream({"END"}, {"EN"}), (Pieces{"", "EN"}));
  EXPECT_EQ(stream({"aab"}, {"aaa", "b"}), (Pieces{"a", ""}));  // the match begins inside what was held
  EXPECT_EQ(stream({"yy", "x"}, {"1xyy"}), (Pieces{"1"}));      // the first in the text, not in the list
}

/// A tiny random model with its plan.
class Generation : public ::testing::Test {
 protected:
  Generation() : model_(config_) {
    model_->init_weights(3);
    const torch::NoGradGuard no_gradients;
    for (torch::Tensor& parameter : model_->parameters()) {
      if (parameter.dim() == 2) parameter.mul_(8.0);  // far from uniform, so that the text depends on what was read
    }
  }

  DecodeState state(std::int64_t capacity) { return DecodeState(config_, {}, capacity, torch::kFloat32); }
  std::string continuation(const std::string& prompt, const SamplingOptions& options, std::int64_t chunk = 4096) {
    DecodeState decode = state(400);
    const torch::Tensor logits = prefill(model_, {}, decode, encode_prompt(*tokenizer_, prompt), chunk);
    std::string text;
    tokens_ = generate(model_, {}, decode, *tokenizer_, logits, options, [&](std::string_view part) { text += part; });
    return text;
  }

  ModelConfig config_ = testing::tiny_config();
  Model model_;
  std::unique_ptr<Tokenizer> tokenizer_ = make_byte_tokenizer();
  std::vector<std::int64_t> tokens_;
};

TEST_F(Generation, GreedyEqualsOneShotForwardPasses) {
  SamplingOptions options;
  options.max_new_tokens = 20;
  const std::string text = continuation("It was a dark night", options);
  ASSERT_EQ(tokens_.size(), 20u);
  EXPECT_EQ(tokenizer_->decode(tokens_), text);
  std::vector<std::int64_t> all = encode_prompt(*tokenizer_, "It was a dark night");
  for (const std::int64_t token : tokens_) {
    const auto length = static_cast<std::int64_t>(all.size());
    const torch::NoGradGuard no_gradients;
    const torch::Tensor logits =
        model_->forward({torch::tensor(all), torch::tensor({0, static_cast<int>(length)}, torch::kInt32), length}, {});
    EXPECT_EQ(logits[-1].argmax().item<std::int64_t>(), token);
    all.push_back(token);
  }
}

TEST_F(Generation, ChunksDoNotChangeTheText) {
  SamplingOptions options;
  options.max_new_tokens = 12;
  const std::string prompt(90, 'q');
  const std::string whole = continuation(prompt, options);
  for (const std::int64_t chunk : {1, 7, 64, 90}) EXPECT_EQ(continuation(prompt, options, chunk), whole);
}

TEST_F(Generation, TokensByLengthAndStop) {
  SamplingOptions options;
  options.max_new_tokens = 0;
  EXPECT_EQ(continuation("abc", options), "");
  EXPECT_TRUE(tokens_.empty());
  options.max_new_tokens = 30;
  const std::string text = continuation("abc", options);
  options.stop = {text.substr(5, 3)};
  const std::size_t first = text.find(options.stop[0]);
  EXPECT_EQ(continuation("abc", options), text.substr(0, first));
  EXPECT_EQ(tokens_.size(), first + 3);
}

TEST_F(Generation, SampledTextRepeatsWithItsSeed) {
  SamplingOptions options = sampling(1.0);
  options.max_new_tokens = 20;
  options.seed = 5;
  const std::string text = continuation("abc", options);
  EXPECT_EQ(continuation("abc", options), text);
  options.seed = 6;
  EXPECT_NE(continuation("abc", options), text);
}

/// Like SentencePiece: BOS, an end token, a space before every word, fewer pieces than the model's head has rows.
class WordTokenizer final : public Tokenizer {
 public:
  explicit WordTokenizer(std::int64_t end) : end_(end) {}
  std::int64_t vocab_size() const override { return 40; }
  std::vector<std::int64_t> encode(std::string_view text) const override {
    return std::vector<std::int64_t>(text.size(), 5);
  }
  std::string decode(const std::vector<std::int64_t>& tokens) const override {
    std::string text;
    for (const std::int64_t token : tokens) text += decode_piece(token);
    return text.empty() ? text : text.substr(1);
  }
  std::string decode_piece(std::int64_t token) const override { return " w" + std::to_string(token); }
  std::vector<std::int64_t> empty_prompt() const override { return {1}; }
  std::vector<std::int64_t> prompt_prefix() const override { return {1}; }
  std::int64_t end_token() const override { return end_; }

 private:
  std::int64_t end_;
};

TEST_F(Generation, WordsBeginWithTheirSpaceExceptWhereTheTextBegins) {
  tokenizer_ = std::make_unique<WordTokenizer>(-1);
  SamplingOptions options;
  options.max_new_tokens = 25;
  const std::string after_bos = continuation("", options);
  EXPECT_EQ(after_bos[0], 'w');
  EXPECT_EQ(after_bos, tokenizer_->decode(tokens_));
  EXPECT_EQ(continuation("text", options)[0], ' ');
  for (const std::int64_t token : tokens_) EXPECT_LT(token, 40);
}

TEST_F(Generation, TheEndTokenEndsAndIsNotReturned) {
  tokenizer_ = std::make_unique<WordTokenizer>(-1);
  SamplingOptions options;
  options.max_new_tokens = 25;
  continuation("text", options);
  const std::vector<std::int64_t> all = tokens_;
  tokenizer_ = std::make_unique<WordTokenizer>(all[3]);
  const auto first = std::find(all.begin(), all.end(), all[3]);
  continuation("text", options);
  EXPECT_EQ(tokens_, std::vector<std::int64_t>(all.begin(), first));
}

TEST_F(Generation, ProgressCountsTokens) {
  DecodeState decode = state(100);
  std::vector<std::int64_t> seen;
  prefill(model_, {}, decode, std::vector<std::int64_t>(50, 65), 20, [&](std::int64_t done, std::int64_t total) {
    EXPECT_EQ(total, 50);
    seen.push_back(done);
  });
  EXPECT_EQ(seen, (std::vector<std::int64_t>{20, 40, 50}));
  EXPECT_EQ(decode.length(), 50);
}

TEST_F(Generation, ErrorsComeBeforeWork) {
  DecodeState decode = state(10);
  expect_error([&] { prefill(model_, {}, decode, {}); }, {"prompt"});
  expect_error([&] { prefill(model_, {}, decode, std::vector<std::int64_t>(11, 65)); }, {"11", "10"});
  EXPECT_EQ(decode.length(), 0);
  expect_error([&] { prefill(model_, {}, decode, {65}, 0); }, {"chunk=0"});
  const torch::Tensor logits = prefill(model_, {}, decode, std::vector<std::int64_t>(8, 65));
  SamplingOptions options;
  options.max_new_tokens = 4;
  expect_error([&] { generate(model_, {}, decode, *tokenizer_, logits, options, {}); }, {"max_new_tokens", "10"});
  options.max_new_tokens = 3;
  EXPECT_EQ(generate(model_, {}, decode, *tokenizer_, logits, options, {}).size(), 3u);
}

}  // namespace
}  // namespace moba::lm
