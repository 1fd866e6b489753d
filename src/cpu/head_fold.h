// One score of a block from the products of several heads, for the ways to share a list that are no plain sum of
// products: the greatest, and the sum of each head's softmax over the row's past blocks.
//
// The bits of a score depend on the row's position and the block alone: the softmax folds in block after block in
// ascending order, whatever the tiles.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/problem.h"

namespace moba::cpu {

class HeadFold {
 public:
  /// For up to `rows` rows of one list at a time.
  HeadFold(Context& context, const ChoiceRule& rule, std::int64_t heads, std::int64_t rows)
      : way_(way(rule, heads)),
        scale_(rule.softmax_scale * kLog2E),
        rows_(rows),
        maximum_(context, totals(rule, heads, rows), "maxima of the heads"),
        sum_(context, totals(rule, heads, rows), "sums of the heads") {}

  static std::int64_t bytes(const ChoiceRule& rule, std::int64_t heads, std::int64_t rows) {
    return 8 * totals(rule, heads, rows);
  }

  /// Whether the product itself adds up the heads, and nothing is to be folded.
  static bool is_plain_sum(const ChoiceRule& rule, std::int64_t heads) {
    return way(rule, heads) == ShareScore::kSumLogit;
  }
  bool is_plain_sum() const { return way_ == ShareScore::kSumLogit; }
  /// Whether every product has to be measured before the first is folded.
  bool needs_totals() const { return way_ == ShareScore::kSumProb; }

  void begin() {
    std::fill_n(maximum_.data(), maximum_.size(), kNegativeInfinity);
    std::fill_n(sum_.data(), sum_.size(), 0.0f);
  }

  /// Folds products[i * stride], i < count, of the blocks that follow those measured before into the softmax of one
  /// head and row. What is NaN or -inf has no weight.
  void measure(std::int64_t head, std::int64_t row, const float* products, std::int64_t stride, std::int64_t count) {
    float maximum = maximum_[head * rows_ + row], sum = sum_[head * rows_ + row];
    for (std::int64_t i = 0; i < count; ++i) {
      const float product = products[i * stride];
      if (product > maximum) {
        sum = (maximum == kNegativeInfinity ? 0.0f : sum * weight(maximum, product)) + 1.0f;
        maximum = product;
      } else if (product > kNegativeInfinity) {
        sum += weight(product, maximum);
      }
    }
    maximum_[head * rows_ + row] = maximum;
    sum_[head * rows_ + row] = sum;
  }

  /// scores[i * stride] of a row with the products of the next head; `head` 0 begins.
  void fold(std::int64_t head, std::int64_t row, const float* products, float* scores, std::int64_t stride,
            std::int64_t count) const {
    for (std::int64_t i = 0; i < count; ++i) {
      const float product = products[i * stride];
      float& score = scores[i * stride];
      if (head == 0) score = kNegativeInfinity;
      if (product != product) {
        score = product;
      } else if (way_ == ShareScore::kMax) {
        if (product > score) score = product;
      } else if (product > kNegativeInfinity) {
        const float p = weight(product, maximum_[head * rows_ + row]) / sum_[head * rows_ + row];
        score = score == kNegativeInfinity ? p : score + p;
      }
    }
  }

 private:
  /// The order by the probabilities of one head is that of its products, and free of underflow.
  static ShareScore way(const ChoiceRule& rule, std::int64_t heads) {
    return heads == 1 ? ShareScore::kSumLogit : rule.share_score;
  }
  static std::int64_t totals(const ChoiceRule& rule, std::int64_t heads, std::int64_t rows) {
    return way(rule, heads) == ShareScore::kSumProb ? heads * rows : 0;
  }

  /// exp(scale * (product - maximum)). In double up to the power: an infinite difference times a tiny scale is not 0.
  float weight(float product, float maximum) const {
    if (product == maximum) return 1.0f;
    return std::exp2(static_cast<float>((static_cast<double>(product) - maximum) * scale_));
  }

  ShareScore way_;
  double scale_;
  std::int64_t rows_;
  Scratch<float> maximum_, sum_;
};

}  // namespace moba::cpu
