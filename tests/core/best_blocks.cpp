#include "core/best_blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace moba::test {
namespace {

using cases::Choice;
using cases::HostTensor;
using cases::Problem;

constexpr double kRounding = 0x1p-24;  // of a float32 number, relative

/// A score and how far a float32 computation of it may be off.
struct Score {
  double value = 0.0, error = 0.0;
};

HostTensor pooled_by_reference(const Problem& problem) {
  const AttentionOptions& options = problem.options;
  const DType keys = problem.k.dtype();
  const bool wide = options.representative_dtype == RepresentativeDType::kFloat32 && keys != DType::kFloat64;
  HostTensor pooled(wide ? DType::kFloat32 : keys,
                    {block_rows(problem.keys(), problem.batch().sequences(), options.block_size), problem.kv_heads(),
                     problem.head_dim()});
  pooled.fill(std::vector<double>(static_cast<std::size_t>(pooled.numel()), 0.0));
  SerialContext context;
  pool(context, reference_backend(), {problem.k.view(), problem.batch(), options.block_size, pooled.view()});
  return pooled;
}

/// products[head][block] of one row's heads into one score a block.
std::vector<Score> shared_scores(const std::vector<std::vector<Score>>& products, ShareScore way, double scale) {
  const std::size_t past = products.front().size();
  std::vector<Score> scores = products.front();
  if (products.size() == 1) return scores;
  const double heads = static_cast<double>(products.size());
  if (way == ShareScore::kSumProb) scores.assign(past, Score{});
  for (std::size_t h = 0; h < products.size(); ++h) {
    const std::vector<Score>& head = products[h];
    double maximum = -std::numeric_limits<double>::infinity(), worst = 0.0, sum = 0.0;
    for (const Score& product : head) {
      maximum = std::max(maximum, product.value);
      worst = std::max(worst, product.error);
    }
    for (const Score& product : head) sum += std::exp(scale * (product.value - maximum));
    for (std::size_t block = 0; block < past; ++block) {
      Score& score = scores[block];
      switch (way) {
        case ShareScore::kSumLogit:
          if (h == 0) continue;
          score.value += head[block].value;
          score.error += head[block].error;
          break;
        case ShareScore::kMax:
          score.value = std::max(score.value, head[block].value);
          score.error = std::max(score.error, head[block].error);
          break;
        case ShareScore::kSumProb: {
          // exp of an argument that is off by the errors of two products and its own rounding, over a sum of `past`
          // such terms that is scaled anew at most as often.
          const double argument = scale * (maximum - head[block].value), p = std::exp(-argument) / sum;
          const double relative =
              4.0 * scale * worst + (4.0 * static_cast<double>(past) + 16.0 + 2.0 * argument) * kRounding;
          score.value += p;
          score.error += p * relative + 0x1p-126;
          break;
        }
      }
    }
  }
  // The sum over heads is one chain.
  for (Score& score : scores) {
    if (way == ShareScore::kSumLogit) score.error *= heads;
    if (way == ShareScore::kSumProb) score.error += heads * kRounding * score.value;
  }
  return scores;
}

}  // namespace

void expect_best_blocks(const Problem& problem, const Choice& choice) {
  const AttentionOptions& options = problem.options;
  const std::int64_t block_size = options.block_size, dim = problem.head_dim(), heads = problem.heads();
  const std::int64_t kv_heads = problem.kv_heads(), budget = choice.selection.budget();
  const std::int64_t lists = choice.selection.selection_heads(), group = heads / lists;
  const std::vector<double> q = problem.q.values(), r = pooled_by_reference(problem).values();
  const std::vector<double> q_offsets = problem.cu_seqlens_q.values(), k_offsets = problem.cu_seqlens_k.values();

  const auto products_of = [&](std::int64_t row, std::int64_t head, std::int64_t first_row, std::int64_t past) {
    std::vector<Score> products(static_cast<std::size_t>(past));
    for (std::int64_t block = 0; block < past; ++block) {
      const double* query = q.data() + (row * heads + head) * dim;
      const double* key = r.data() + ((first_row + block) * kv_heads + head / (heads / kv_heads)) * dim;
      Score& product = products[static_cast<std::size_t>(block)];
      for (std::int64_t d = 0; d < dim; ++d) {
        product.value += query[d] * key[d];
        product.error += static_cast<double>(dim) * kRounding * std::fabs(query[d] * key[d]);
      }
    }
    return products;
  };

  for (std::size_t s = 0; s + 1 < q_offsets.size(); ++s) {
    const std::int64_t end = static_cast<std::int64_t>(q_offsets[s + 1]);
    const std::int64_t first_row = static_cast<std::int64_t>(k_offsets[s]) / block_size + static_cast<std::int64_t>(s);
    for (std::int64_t row = static_cast<std::int64_t>(q_offsets[s]); row < end; ++row) {
      const std::int64_t position = static_cast<std::int64_t>(k_offsets[s + 1] - k_offsets[s]) - (end - row);
      const std::int64_t past = position < 0 ? 0 : position / block_size, count = std::min(budget, past);
      const auto is_forced = [&](std::int64_t block) {
        return block < options.sink_blocks || (options.force_previous && block == past - 1);
      };
      for (std::int64_t g = 0; g < lists; ++g) {
        const std::int32_t* list = choice.list.view().as<std::int32_t>() + (row * lists + g) * budget;
        std::vector<char> chosen(static_cast<std::size_t>(past), 0);
        for (std::int64_t slot = 0; slot < budget; ++slot) {
          if (slot >= count) {
            ASSERT_EQ(list[slot], -1) << "row " << row << " list " << g << " slot " << slot;
            continue;
          }
          ASSERT_GE(list[slot], slot == 0 ? 0 : list[slot - 1] + 1) << "row " << row << " list " << g;
          ASSERT_LT(list[slot], past) << "row " << row << " list " << g;
          chosen[static_cast<std::size_t>(list[slot])] = 1;
        }
        if (past == 0) continue;
        std::vector<std::vector<Score>> products;
        for (std::int64_t h = g * group; h < (g + 1) * group; ++h) {
          products.push_back(products_of(row, h, first_row, past));
        }
        const std::vector<Score> scores = shared_scores(products, options.share_score, problem.scale());
        double worst = std::numeric_limits<double>::infinity();  // what a chosen block can at best have been scored
        for (std::int64_t block = 0; block < past; ++block) {
          const std::size_t b = static_cast<std::size_t>(block);
          if (is_forced(block)) {
            ASSERT_TRUE(chosen[b]) << "row " << row << " list " << g << " lacks the forced block " << block;
          } else if (chosen[b]) {
            worst = std::min(worst, scores[b].value + scores[b].error);
          }
        }
        for (std::int64_t block = 0; block < past; ++block) {
          const std::size_t b = static_cast<std::size_t>(block);
          ASSERT_TRUE(chosen[b] || scores[b].value - scores[b].error <= worst)
              << "row " << row << " list " << g << " leaves out block " << block;
        }
      }
    }
  }
}

}  // namespace moba::test
