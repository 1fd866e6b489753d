// merge: exact for parts over disjoint keys, order-free up to rounding, with {0, -inf} as its neutral element.
#include <cmath>
#include <limits>
#include <random>

#include "cases/compare.h"
#include "core/support.h"
#include "dtype.h"

namespace moba::test {
namespace {

using cases::HostTensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kRows = 13, kHeads = 3, kValueDim = 17;

struct PartMemory {
  HostTensor out, lse;
  Partial view() const { return {out.view(), lse.view()}; }
};

PartMemory random_part(std::mt19937_64& random, DType dtype) {
  return {cases::random_tensor(random, dtype, {kRows, kHeads, kValueDim}),
          cases::random_tensor(random, DType::kFloat32, {kHeads, kRows})};
}

PartMemory empty_part(DType dtype) {
  PartMemory part{HostTensor(dtype, {kRows, kHeads, kValueDim}), HostTensor(DType::kFloat32, {kHeads, kRows})};
  part.out.fill(std::vector<double>(kRows * kHeads * kValueDim, 0.0));
  part.lse.fill(std::vector<double>(kHeads * kRows, -kInfinity));
  return part;
}

class MergeTest : public BackendTest {
 protected:
  PartMemory merged(const std::vector<const PartMemory*>& parts, DType dtype = DType::kFloat32) {
    std::vector<Partial> views;
    for (const PartMemory* part : parts) views.push_back(part->view());
    PartMemory result{HostTensor(dtype, {kRows, kHeads, kValueDim}), HostTensor(DType::kFloat32, {kHeads, kRows})};
    merge(context, backend(), {views, result.view()});
    return result;
  }
  void expect_close(const PartMemory& a, const PartMemory& b) {
    EXPECT_TRUE(cases::is_close(a.out, b.out, 1e-6));
    EXPECT_TRUE(cases::is_close(a.lse, b.lse, 1e-6));
  }
  std::mt19937_64 random{1};
};

TEST_P(MergeTest, IsAssociativeAndCommutative) {
  const PartMemory a = random_part(random, DType::kFloat32), b = random_part(random, DType::kFloat32),
                   c = random_part(random, DType::kFloat32);
  const PartMemory all = merged({&a, &b, &c}), ab = merged({&a, &b}), bc = merged({&b, &c});
  expect_close(merged({&ab, &c}), all);
  expect_close(merged({&a, &bc}), all);
  expect_close(merged({&c, &a, &b}), all);
  expect_close(merged({&b, &a}), ab);
}

TEST_P(MergeTest, EmptyPartIsNeutral) {
  for (DType dtype : dtypes()) {
    const PartMemory a = random_part(random, dtype), empty = empty_part(dtype);
    for (const PartMemory& result : {merged({&a}, dtype), merged({&a, &empty}, dtype), merged({&empty, &a}, dtype)}) {
      EXPECT_TRUE(cases::same_bits(result.out, a.out));
      EXPECT_TRUE(cases::same_bits(result.lse, a.lse));
    }
    for (const PartMemory& result : {merged({&empty, &empty}, dtype), merged({}, dtype)}) {
      EXPECT_TRUE(cases::same_bits(result.out, empty.out));
      EXPECT_TRUE(cases::same_bits(result.lse, empty.lse));
    }
  }
}

// An empty part has no say even where its values are not numbers.
TEST_P(MergeTest, EmptyPartMayHoldAnything) {
  const PartMemory a = random_part(random, DType::kFloat32);
  PartMemory poisoned = empty_part(DType::kFloat32);
  poisoned.out.fill(std::vector<double>(kRows * kHeads * kValueDim, std::numeric_limits<double>::quiet_NaN()));
  EXPECT_TRUE(cases::same_bits(merged({&a, &poisoned}).out, a.out));
}

TEST_P(MergeTest, LargeLogSumsStayFinite) {
  PartMemory a = random_part(random, DType::kFloat32), b = random_part(random, DType::kFloat32);
  for (std::int64_t i = 0; i < kHeads * kRows; ++i) {
    a.lse.set(i, 3e37);
    b.lse.set(i, i % 2 == 0 ? -3e37 : 3e37);
  }
  const PartMemory result = merged({&a, &b});
  for (double x : result.out.values()) EXPECT_TRUE(std::isfinite(x));
  for (double x : result.lse.values()) EXPECT_TRUE(std::isfinite(x));
  EXPECT_NEAR(result.out.get(0), a.out.get(0), 1e-6);  // row 0 of head 0: b weighs nothing
}

// Any way to share out the keys among parts gives the attention over all of them.
TEST_P(MergeTest, AnyPartitionOfTheKeysMergesToTheSame) {
  std::mt19937_64 chance{7};
  for (int trial = 0; trial < 20; ++trial) {
    const std::int64_t keys = 1 + static_cast<std::int64_t>(chance() % 40);
    const HostTensor q = cases::random_tensor(random, DType::kFloat32, {1, 2, 16});
    const HostTensor k = cases::random_tensor(random, DType::kFloat32, {keys, 1, 16});
    const HostTensor v = cases::random_tensor(random, DType::kFloat32, {keys, 1, 8});
    // One query row at the end sees every key: attend each share as a sequence of its own.
    const auto attend_keys = [&](const std::vector<std::int64_t>& share) {
      const std::int64_t count = static_cast<std::int64_t>(share.size());
      HostTensor k_part(DType::kFloat32, {count, 1, 16}), v_part(DType::kFloat32, {count, 1, 8});
      for (std::int64_t t = 0; t < count; ++t) {
        for (std::int64_t d = 0; d < 16; ++d)
          k_part.set(t * 16 + d, k.get(share[static_cast<std::size_t>(t)] * 16 + d));
        for (std::int64_t d = 0; d < 8; ++d) v_part.set(t * 8 + d, v.get(share[static_cast<std::size_t>(t)] * 8 + d));
      }
      const HostTensor q_offsets = cases::offsets_of({1}), k_offsets = cases::offsets_of({count});
      PartMemory part{HostTensor(DType::kFloat32, {1, 2, 8}), HostTensor(DType::kFloat32, {2, 1})};
      attend(context, backend(),
             {q.view(),
              k_part.view(),
              v_part.view(),
              {q_offsets.view(), k_offsets.view(), 1, std::max<std::int64_t>(count, 1)},
              Selection{},
              0.0,
              part.view()});
      return part;
    };
    std::vector<std::int64_t> everything;
    std::vector<std::vector<std::int64_t>> shares(1 + chance() % 5);
    for (std::int64_t t = 0; t < keys; ++t) {
      everything.push_back(t);
      shares[chance() % shares.size()].push_back(t);
    }
    std::vector<PartMemory> parts;
    for (const auto& share : shares) parts.push_back(attend_keys(share));
    std::vector<Partial> views;
    for (const PartMemory& part : parts) views.push_back(part.view());
    PartMemory result{HostTensor(DType::kFloat32, {1, 2, 8}), HostTensor(DType::kFloat32, {2, 1})};
    merge(context, backend(), {views, result.view()});
    const PartMemory whole = attend_keys(everything);
    EXPECT_TRUE(cases::is_close(result.out, whole.out, 2e-6));
    EXPECT_TRUE(cases::is_close(result.lse, whole.lse, 2e-6));
  }
}

// float32 parts of a bfloat16 result, as kernels keep them.
TEST_P(MergeTest, TakesFloat32PartsOfANarrowResult) {
  const PartMemory a = random_part(random, DType::kFloat32), b = random_part(random, DType::kFloat32);
  const PartMemory wide = merged({&a, &b});
  for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    const PartMemory narrow = merged({&a, &b}, dtype);
    EXPECT_LE(cases::max_error(narrow.out, wide.out),
              (dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11) * cases::max_size(wide.out));
  }
}

// The result may be written over a part.
TEST_P(MergeTest, WorksInPlace) {
  const PartMemory a = random_part(random, DType::kFloat32), b = random_part(random, DType::kFloat32);
  const PartMemory expected = merged({&a, &b});
  std::vector<Partial> views = {a.view(), b.view()};
  merge(context, backend(), {views, a.view()});
  EXPECT_TRUE(cases::same_bits(a.out, expected.out));
  EXPECT_TRUE(cases::same_bits(a.lse, expected.lse));
}

INSTANTIATE_TEST_SUITE_P(All, MergeTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace moba::test
