// self_check passes on sound backends and notices an unsound one.
#include "moba/pipeline.h"

#include "cases/problem.h"
#include "core/support.h"

namespace moba::test {
namespace {

using cases::Problem;

SelfCheckReport check(Context& context, const Backend& backend, const Problem& problem) {
  return self_check(context, backend, problem.options, problem.q.view(), problem.k.view(), problem.v.view(),
                    problem.batch(), 7);
}

class SelfCheckTest : public BackendTest {};

TEST_P(SelfCheckTest, PassesOnTheTable) {
  for (const char* name : {"defaults", "packed", "mixed_lengths", "odd_block", "dims_96_33", "group_of_16", "larger",
                           "full", "one_token", "zero_length_sequences_at_the_ends", "compat_top_k_1", "empty_batch"}) {
    for (DType dtype : dtypes()) {
      const SelfCheckReport report = check(context, backend(), Problem(cases::case_named(name, dtype)));
      EXPECT_TRUE(report.passed) << name << " " << name_of(dtype) << ": " << report.summary();
      EXPECT_NE(report.summary().find("passed"), std::string::npos);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, SelfCheckTest, ::testing::ValuesIn(backends()), backend_name);

/// The reference, but for one verb that forgets something.
class Unsound : public Backend {
 public:
  enum class Fault { kForgetsABlock, kForgetsAGradient };
  explicit Unsound(Fault fault) : fault_(fault) {}
  const char* name() const override { return "unsound"; }
  bool supports(DType dtype) const override { return reference_backend().supports(dtype); }
  void pool(Context& c, const PoolArgs& a) const override { reference_backend().pool(c, a); }
  void score(Context& c, const ScoreArgs& a) const override { reference_backend().score(c, a); }
  void select(Context& c, const SelectArgs& a) const override {
    reference_backend().select(c, a);
    if (fault_ == Fault::kForgetsABlock) a.selection.blocks.as<std::int32_t>()[a.selection.blocks.numel() - 1] = -1;
  }
  void invert(Context& c, const InvertArgs& a) const override { reference_backend().invert(c, a); }
  void attend(Context& c, const AttendArgs& a) const override { reference_backend().attend(c, a); }
  void attend_backward(Context& c, const AttendBackwardArgs& a) const override {
    reference_backend().attend_backward(c, a);
    if (fault_ == Fault::kForgetsAGradient && a.selection.kind == SelectionKind::kList) a.dk.as<float>()[0] += 1.0f;
  }
  void merge(Context& c, const MergeArgs& a) const override { reference_backend().merge(c, a); }

 private:
  Fault fault_;
};

TEST(SelfCheckFaults, AreNoticed) {
  TestContext context;
  const Problem problem(cases::case_named("exactly_four_blocks"));
  const SelfCheckReport block = check(context, Unsound(Unsound::Fault::kForgetsABlock), problem);
  EXPECT_FALSE(block.passed);
  EXPECT_GT(block.out_error, block.tolerance);
  EXPECT_NE(block.summary().find("FAILED"), std::string::npos);
  const SelfCheckReport gradient = check(context, Unsound(Unsound::Fault::kForgetsAGradient), problem);
  EXPECT_FALSE(gradient.passed);
  EXPECT_LE(gradient.out_error, gradient.tolerance);
  EXPECT_GT(gradient.dk_error, gradient.tolerance);
}

TEST(SelfCheckArguments, AShapeThatNoMemoryHoldsIsRefused) {
  TestContext context;
  const Problem problem(cases::case_named("defaults"));
  ConstTensorView v = problem.v.view();
  for (const std::int64_t extent : {(std::int64_t{1} << 62) + 1, std::int64_t{-3}}) {
    v.shape[2] = extent;
    EXPECT_THROW(self_check(context, reference_backend(), problem.options, problem.q.view(), problem.k.view(), v,
                            problem.batch(), 7),
                 Error);
  }
}

}  // namespace
}  // namespace moba::test
