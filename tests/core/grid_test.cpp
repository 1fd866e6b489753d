// The grid of the MoBA authors' own tests (MoonshotAI/MoBA, tests/test_moba_attn.py): batch 1, 4, 7; heads 1, 2, 4, 8;
// length 512, 1024, 2048 in all; head dim 128; blocks of 128, 256, 1024; k 2, 3, 4; bfloat16, forward and backward,
// with their tolerance: at most 4e-2, 4e-4 on average.
#include <algorithm>
#include <random>
#include <thread>

#include "cases/compare.h"
#include "core/support.h"

namespace moba::test {
namespace {

using cases::Case;
using cases::Problem;

class GridTest : public ::testing::TestWithParam<std::tuple<int, int, int>> {};  // batch, heads, length

std::vector<std::int64_t> random_lengths(std::mt19937_64& random, int batch, std::int64_t total) {
  std::vector<std::int64_t> cuts = {0, total};
  while (static_cast<int>(cuts.size()) <= batch) {
    const std::int64_t cut = 1 + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(total - 1));
    if (std::find(cuts.begin(), cuts.end(), cut) == cuts.end()) cuts.push_back(cut);
  }
  std::sort(cuts.begin(), cuts.end());
  std::vector<std::int64_t> lengths;
  for (std::size_t i = 1; i < cuts.size(); ++i) lengths.push_back(cuts[i] - cuts[i - 1]);
  return lengths;
}

TEST_P(GridTest, CpuEqualsTheReference) {
  const auto [batch, heads, length] = GetParam();
  std::mt19937_64 random(static_cast<std::uint64_t>(batch * 10000 + heads * 1000 + length));
  Case c;
  c.dtype = DType::kBFloat16;
  c.heads = c.kv_heads = heads;
  c.head_dim = c.value_dim = 128;
  c.q_lengths = c.k_lengths = random_lengths(random, batch, length);
  c.seed = random();
  Problem problem(c);
  TestContext context(2);
  for (std::int64_t block_size : {128, 256, 1024}) {
    for (std::int64_t top_k : {2, 3, 4}) {
      problem.options.block_size = block_size;
      problem.options.top_k = top_k;
      SCOPED_TRACE("block " + std::to_string(block_size) + " k " + std::to_string(top_k));
      const cases::Choice choice = cases::choose(context, reference_backend(), problem);
      const cases::Results expected = cases::run(context, reference_backend(), problem, choice.selection);
      const cases::Results r = cases::run(context, cpu_backend(), problem, choice.selection);
      const auto expect_equal = [](const cases::HostTensor& a, const cases::HostTensor& b, const char* name) {
        EXPECT_LT(cases::max_error(a, b), 4e-2) << name;
        EXPECT_LT(cases::mean_error(a, b), 4e-4) << name;
      };
      expect_equal(r.out, expected.out, "out");
      expect_equal(r.lse, expected.lse, "lse");
      expect_equal(r.dq, expected.dq, "dq");
      expect_equal(r.dk, expected.dk, "dk");
      expect_equal(r.dv, expected.dv, "dv");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, GridTest,
                         ::testing::Combine(::testing::Values(1, 4, 7), ::testing::Values(1, 2, 4, 8),
                                            ::testing::Values(512, 1024, 2048)),
                         [](const auto& param) {
                           return "batch" + std::to_string(std::get<0>(param.param)) + "_heads" +
                                  std::to_string(std::get<1>(param.param)) + "_length" +
                                  std::to_string(std::get<2>(param.param));
                         });

}  // namespace
}  // namespace moba::test
