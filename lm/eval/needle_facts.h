// Made-up facts for the needle test: a sentence that ends in its value, and near-identical sentences beside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lm/data/random.h"

namespace moba::lm {

/// "The locker that Ada Quill rented … opens with" + " " + "48213" + ".": asked by `beginning`, answered by `value`.
struct Fact {
  std::size_t sentence_pattern = 0;  // index in fact_patterns()
  std::string beginning;             // up to the value, without a trailing space
  std::string value;
  std::string sentence() const { return beginning + " " + value + "."; }
};

/// A fact and sentences that share all of it but the names and the value.
struct FactGroup {
  Fact fact;
  std::vector<Fact> distractors;
};

/// Bytes of the longest value: an invented word of 4 syllables, each of at most 4 letters, and a closing one.
inline constexpr std::size_t kLongestValue = 17;

/// The sentences, up to their value: "{a}" and "{b}" stand for persons, "{p}" for a place. They are used in evaluation
/// only: training draws its sentences elsewhere.
std::span<const std::string_view> fact_patterns();

/// Draws facts. Within one maker no value comes twice, and no two facts of one pattern share their names.
class FactMaker {
 public:
  explicit FactMaker(Random random) : random_(random) {}

  /// One fact of the given pattern with its distractors; values are 4 to 6 digits or an invented word, the same kind in
  /// the whole group.
  FactGroup make(std::size_t pattern, std::int64_t distractors);

 private:
  Fact draw(std::size_t pattern, bool digits, std::set<std::string>& group_names);
  std::string draw_value(bool digits);

  Random random_;
  std::set<std::string> values_;
  std::set<std::string> beginnings_;
};

}  // namespace moba::lm
