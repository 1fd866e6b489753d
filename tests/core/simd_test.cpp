// Every SIMD level of the CPU backend that this processor has. `MOBA_SIMD_LEVEL=SSE4 core_tests` limits the whole run.
#include <cctype>
#include <cstdlib>

#include "cases/compare.h"
#include "cases/dense.h"
#include "core/support.h"
#include "moba/cpu_info.h"

namespace moba::test {
namespace {

const char* level_of_environment() {
  return std::getenv("MOBA_SIMD_LEVEL");
}

/// Applies the limit before the first test.
class SimdEnvironment : public ::testing::Environment {
  void SetUp() override {
    if (const char* name = level_of_environment()) {
      ASSERT_TRUE(limit_simd_level(name)) << "MOBA_SIMD_LEVEL=" << name << " is not a compiled level";
    }
  }
};

[[maybe_unused]] const ::testing::Environment* const kEnvironment =
    ::testing::AddGlobalTestEnvironment(new SimdEnvironment);  // gtest owns it

class SimdTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (level_of_environment() != nullptr) GTEST_SKIP() << "the level is fixed by MOBA_SIMD_LEVEL";
    ASSERT_TRUE(limit_simd_level(GetParam().c_str()));
    if (GetParam() != simd_level()) {
      const std::string used = simd_level();
      limit_simd_level(nullptr);
      GTEST_SKIP() << "this processor has " << used << " and not " << GetParam();
    }
  }
  void TearDown() override {
    if (level_of_environment() == nullptr) limit_simd_level(nullptr);
  }
};

TEST_P(SimdTest, IsWithinTwiceTheErrorOfDense) {
  for (const char* name :
       {"packed", "mixed_lengths", "odd_block", "dims_13_9", "dims_96_33", "dims_255_31", "full_large_group",
        "window_with_sink", "group_of_8", "one_query_many_keys", "many_blocks_many_chosen"}) {
    for (DType dtype : dtypes()) {
      SCOPED_TRACE(std::string(name) + " " + name_of(dtype));
      const cases::Problem problem(cases::case_named(name, dtype));
      TestContext context(2);
      const cases::Choice choice = cases::choose(context, cpu_backend(), problem);
      const cases::Results result = cases::run(context, cpu_backend(), problem, choice.selection);
      const cases::Mask mask(problem, choice.selection);
      cases::expect_within_twice(result, cases::dense_same_precision(problem, mask), cases::dense_exact(problem, mask));
    }
  }
}

// The choice may differ from the reference's at near-ties only; pooled bits may not differ at all.
TEST_P(SimdTest, PoolsTheSameBitsAndChoosesAlike) {
  for (DType dtype : dtypes()) {
    const cases::Problem problem(cases::case_named("larger", dtype));
    TestContext context(2);
    const cases::Choice mine = cases::choose(context, cpu_backend(), problem);
    const cases::Choice reference = cases::choose(context, reference_backend(), problem);
    std::int64_t different = 0;
    for (std::int64_t i = 0; i < mine.list.numel(); ++i) different += mine.list.get(i) != reference.list.get(i);
    EXPECT_LE(different, mine.list.numel() / 1000);
    const std::int64_t rows = block_rows(problem.keys(), 1, 128);
    cases::HostTensor a(dtype, {rows, problem.kv_heads(), problem.head_dim()}), b = a;
    pool(context, cpu_backend(), {problem.k.view(), problem.batch(), 128, a.view()});
    pool(context, reference_backend(), {problem.k.view(), problem.batch(), 128, b.view()});
    EXPECT_TRUE(cases::same_bits(a, b));
  }
}

INSTANTIATE_TEST_SUITE_P(All, SimdTest, ::testing::ValuesIn(compiled_simd_levels()), [](const auto& param) {
  std::string name = param.param;
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
});

TEST(SimdLevelTest, UnknownNamesChangeNothing) {
  const std::string before = simd_level();
  EXPECT_FALSE(limit_simd_level("MMX"));
  EXPECT_EQ(before, simd_level());
}

}  // namespace
}  // namespace moba::test
