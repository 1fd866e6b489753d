#include "lm/eval/needle_trial.h"

#include <algorithm>
#include <string>
#include <utility>

#include "lm/data/random.h"

namespace moba::lm {
namespace {

/// Places of the facts of one depth: the depth itself for one fact, else spread over half a step to either side.
std::vector<double> fact_positions(double depth, std::int64_t depths, std::int64_t facts) {
  if (facts == 1) return {depth};
  const double step = depths > 1 ? 1.0 / static_cast<double>(depths - 1) : 1.0;
  const double low = std::max(0.0, depth - step / 2);
  const double high = std::min(1.0, depth + step / 2);
  std::vector<double> positions;
  for (std::int64_t i = 0; i < facts; ++i) {
    positions.push_back(low + (high - low) * (static_cast<double>(i) + 0.5) / static_cast<double>(facts));
  }
  return positions;
}

}  // namespace

NeedleTrial make_needle_trial(const Tokenizer& tokenizer, const TextLoop& source, const NeedleOptions& options,
                              std::int64_t length, std::int64_t depth_index) {
  Random random(options.seed, {static_cast<std::uint64_t>(length), static_cast<std::uint64_t>(depth_index)});
  FactMaker maker(Random(random.next(), {}));
  const std::size_t patterns = fact_patterns().size();
  const std::size_t first_pattern = random.below(patterns);

  NeedleTrial trial;
  std::vector<PlacedSentence> sentences;
  std::int64_t shortest = length, longest = 0;
  const std::vector<double> positions =
      fact_positions(needle_depth(depth_index, options.depths), options.depths, options.needles);
  for (std::size_t i = 0; i < positions.size(); ++i) {
    FactGroup group = maker.make((first_pattern + i) % patterns, options.distractors);
    sentences.push_back({positions[i], group.fact.sentence()});
    for (const Fact& distractor : group.distractors) {
      sentences.push_back({random.uniform(), distractor.sentence()});
    }
    std::vector<std::int64_t> asked = tokenizer.encode("\n\n" + group.fact.beginning);
    shortest = std::min(shortest, static_cast<std::int64_t>(asked.size()));
    longest = std::max(longest, static_cast<std::int64_t>(asked.size()));
    trial.questions.push_back({std::move(group.fact), std::move(asked)});
  }
  const std::size_t start = source.sentence_start(random.below(source.size()));
  trial.tokens = build_haystack(tokenizer, source, start, length - shortest, sentences, longest - shortest);
  trial.length = length;
  trial.common = length - longest;
  return trial;
}

}  // namespace moba::lm
