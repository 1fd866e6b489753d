// What the needle test is told and what it finds; free of torch, for those who only show results.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moba::lm {

struct NeedleOptions {
  std::vector<std::int64_t> lengths;  // tokens of the whole prompt
  std::int64_t depths = 5;            // needle positions from 0 to 1, evenly; one depth alone is the middle
  std::int64_t needles = 5;           // trials for each (length, depth)
  std::int64_t distractors = 3;       // near-identical sentences beside each needle
  std::uint64_t seed = 0;
};

/// Right answers to the questions of one sentence pattern.
struct PatternCount {
  std::size_t pattern = 0;  // index in fact_patterns()
  std::int64_t trials = 0;
  std::int64_t correct = 0;
};

/// One cell of the result: a length and a depth under one attention plan.
struct NeedleResult {
  std::string attention;  // "full", "moba", "model"
  std::int64_t length = 0;
  double depth = 0;
  std::int64_t trials = 0;
  std::int64_t correct = 0;
  double seconds = 0;  // to read a whole prompt: the haystack once, and the median of its questions
  std::vector<PatternCount> patterns;
  std::vector<std::string> misses;  // "asked … expected … got …"
};

/// The greedy continuation is the value, after at most one space, and then no letter or digit. Bytes outside ASCII
/// count as letters.
bool is_right_answer(std::string_view continuation, std::string_view value);

/// Depth i of `depths`: evenly from 0 to 1; 0.5 when there is one.
double needle_depth(std::int64_t index, std::int64_t depths);

}  // namespace moba::lm
