#include "lm/eval/needle.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include <fmt/format.h>

#include "lm/eval/haystack.h"
#include "lm/eval/needle_facts.h"
#include "lm/eval/needle_trial.h"
#include "lm/generate/generate.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Waits until the device has computed `logits`, so that a clock read afterwards means something.
void wait_for(const torch::Tensor& logits) {
  (void)logits.flatten()[0].item<float>();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// Tokens that certainly hold a space, a value of that many bytes and what follows it: no token is less than a byte.
constexpr std::int64_t answer_room(std::size_t value_bytes) {
  return static_cast<std::int64_t>(value_bytes) + 3;
}

/// What a model wrote, fit for a report: anything but printable ASCII as \xNN.
std::string printable(std::string_view text) {
  std::string result;
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    result += byte >= 0x20 && byte < 0x7F ? std::string(1, c) : fmt::format("\\x{:02x}", byte);
  }
  return result;
}

/// Reads, asks, answers.
class NeedleRunner {
 public:
  NeedleRunner(Model& model, const Tokenizer& tokenizer, const AttentionPlan& plan)
      : model_(model), tokenizer_(tokenizer), plan_(plan) {}

  void run(const NeedleTrial& trial, DecodeState& state, const std::function<void(std::int64_t)>& progress,
           NeedleResult& result) {
    state.truncate(0);
    const auto begin = trial.tokens.begin();
    auto started = Clock::now();
    wait_for(prefill(model_, plan_, state, {begin, begin + trial.common}, 4096,
                     [&](std::int64_t done, std::int64_t /*total*/) { progress(done); }));
    const double haystack_seconds = seconds_since(started);

    std::vector<double> question_seconds;
    for (const NeedleQuestion& question : trial.questions) {
      const std::int64_t text_end = trial.length - static_cast<std::int64_t>(question.tokens.size());
      std::vector<std::int64_t> rest(begin + trial.common, begin + text_end);
      rest.insert(rest.end(), question.tokens.begin(), question.tokens.end());
      started = Clock::now();
      torch::Tensor logits = prefill(model_, plan_, state, rest);
      wait_for(logits);
      question_seconds.push_back(seconds_since(started));
      record(question.fact, answer(state, logits, question.fact.value), result);
      state.truncate(trial.common);
    }
    result.seconds = haystack_seconds + median(question_seconds);
  }

 private:
  std::string answer(DecodeState& state, const torch::Tensor& logits, const std::string& value) {
    SamplingOptions greedy;
    greedy.max_new_tokens = answer_room(value.size());
    std::string text;
    generate(model_, plan_, state, tokenizer_, logits, greedy, [&](std::string_view piece) { text += piece; });
    return text;
  }

  static void record(const Fact& fact, const std::string& got, NeedleResult& result) {
    const bool right = is_right_answer(got, fact.value);
    auto count = std::find_if(result.patterns.begin(), result.patterns.end(),
                              [&](const PatternCount& known) { return known.pattern == fact.sentence_pattern; });
    if (count == result.patterns.end()) {
      count = result.patterns.insert(count, {.pattern = fact.sentence_pattern});
    }
    ++result.trials;
    ++count->trials;
    if (right) {
      ++result.correct;
      ++count->correct;
    } else {
      result.misses.push_back(
          fmt::format("asked '{}' expected '{}' got '{}'", fact.beginning, fact.value, printable(got)));
    }
  }

  Model& model_;
  const Tokenizer& tokenizer_;
  const AttentionPlan& plan_;
};

void check(const NeedleOptions& options) {
  const auto at_least = [](const char* name, std::int64_t value, std::int64_t least) {
    if (value < least) {
      throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: {} is below {}", name, value, least));
    }
  };
  if (options.lengths.empty()) throw Error(ErrorCode::kInvalidArgument, "lengths: give at least one");
  for (std::int64_t length : options.lengths) at_least("length", length, 1);
  at_least("depths", options.depths, 1);
  at_least("needles", options.needles, 1);
  at_least("distractors", options.distractors, 0);
  // Every sentence has names of its own, and there are 1600 persons for each of the patterns.
  constexpr std::int64_t kMostSentences = 4096;
  if (options.needles > kMostSentences / (1 + std::min(options.distractors, kMostSentences))) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("needles: {} with {} distractors each are more than the {} sentences one haystack may hold",
                            options.needles, options.distractors, kMostSentences));
  }
}

}  // namespace

std::vector<NeedleResult> run_needle(Model& model, const Tokenizer& tokenizer, const AttentionPlan& plan,
                                     const std::string& attention_name, const std::vector<std::string>& texts,
                                     const NeedleOptions& options,
                                     const std::function<void(const NeedleProgress&)>& progress) {
  check(options);
  const torch::NoGradGuard no_gradients;
  const TextLoop source(texts);
  const torch::TensorOptions tensor_options = model->parameters().front().options();
  NeedleRunner runner(model, tokenizer, plan);

  NeedleProgress report;
  report.attention = attention_name;
  for (std::int64_t length : options.lengths) report.total += length * options.depths;
  std::int64_t done = 0;
  std::vector<NeedleResult> results;
  for (std::int64_t length : options.lengths) {
    report.length = length;
    DecodeState state(model->config(), plan, length + answer_room(kLongestValue), tensor_options);
    for (std::int64_t depth = 0; depth < options.depths; ++depth) {
      const NeedleTrial trial = make_needle_trial(tokenizer, source, options, length, depth);
      NeedleResult result;
      result.attention = attention_name;
      result.length = length;
      result.depth = needle_depth(depth, options.depths);
      runner.run(
          trial, state,
          [&](std::int64_t read) {
            report.done = done + read;
            if (progress) progress(report);
          },
          result);
      done += length;
      results.push_back(std::move(result));
    }
  }
  return results;
}

}  // namespace moba::lm
