// Random problems for the property tests and the fuzzer: shapes, lengths, options, dtypes and lists that nobody thought
// of, each repeated by its seed; and a count of the pairs of features that a set of them covers.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cases/dense.h"
#include "cases/problem.h"
#include "moba/moba.h"

namespace moba::test {

/// Draws whole numbers from a seed.
class Chance {
 public:
  explicit Chance(std::uint64_t seed) : random_(seed) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }
  bool one_in(std::int64_t n) { return between(1, n) == 1; }
  /// Every power of two between is as likely as any other.
  std::int64_t log_between(std::int64_t low, std::int64_t high);

 private:
  std::mt19937_64 random_;
};

enum class Method { kFull, kWindow, kMoba, kAnyList };

/// A problem and how it is run.
struct RandomCase {
  cases::Case problem;
  Method method = Method::kFull;  // kAnyList: a list that no selector made, `problem.options.top_k` - 1 wide
  std::int64_t selection_heads = 0;
  DType q_offsets = DType::kInt32, k_offsets = DType::kInt64;
  cases::Layout layout = cases::Layout::kContiguous;
  bool has_dlse = true;
  int threads = 1;
  bool tight_workspace = false;  // the least limit that works, up to a factor of two

  std::int64_t longest() const;
  /// Whether some row of a chosen-block method stands in a sequence of more than 2 * top_k blocks.
  bool is_sparse() const;
  std::string describe() const;
};

/// Longest sequence and largest head and value dim to draw.
struct Limits {
  std::int64_t keys = 2048, dim = 256;
};
RandomCase random_case(std::uint64_t seed, const Limits& limits = {});

/// q, k, v, gradients and offsets of the case.
cases::Problem make_problem(const RandomCase& c);

/// Any ascending set of past blocks for each row: int32 [rows, selection_heads, budget].
cases::HostTensor random_list(const cases::Problem& problem, std::int64_t selection_heads, std::int64_t budget,
                              std::uint64_t seed);

/// How far each element of the results may be from `exact` by roundings alone, to first order: those of inputs' dtype
/// that the definition allows (probabilities, their gradients, results) and of float32 sums in any order.
cases::Results rounding_bounds(const cases::Problem& problem, const cases::Mask& mask, const cases::Results& exact);

/// The CPU backend on the case: its choice against the scores in double precision, its results against the reference in
/// double precision, by the 2x-error rule or, where dense was lucky, within rounding_bounds(). Reports through
/// GoogleTest; returns how many of the five tensors the bounds had to decide on.
int expect_agreement(const RandomCase& c);

/// How often each pair of levels of two features occurs.
class PairCoverage {
 public:
  void count(const RandomCase& c);
  struct Summary {
    std::int64_t pairs = 0, missing = 0, least = 0;
    std::string rarest, text;  // text: a line a feature, its levels with their counts
  };
  Summary summary() const;

 private:
  std::map<std::tuple<int, int, int, int>, std::int64_t> pairs_;  // feature, level, feature, level
  std::map<std::pair<int, int>, std::int64_t> levels_;
};

}  // namespace moba::test
