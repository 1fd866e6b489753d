// The forward pass on the GPU against the definition, on the table's cases that have native kernels and on problems
// that are hard for them.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cases/compare.h"
#include "cases/dense.h"
#include "cuda/device.h"
#include "cuda/verbs.h"
#include "moba/error.h"

namespace moba::test {
namespace {

using cases::Case;
using cases::Choice;
using cases::HostTensor;
using cases::Problem;
using cases::Results;

bool is_native(const Case& c) {
  return (c.dtype == DType::kBFloat16 || c.dtype == DType::kFloat16) && c.head_dim == c.value_dim &&
         (c.head_dim == 64 || c.head_dim == 128) && c.options.kind == Kind::kMoba && c.options.block_size >= 16 &&
         !(c.options.top_k == 1 && c.options.compat_topk1_full);
}

/// out and lse, from poisoned memory.
Results attend_on_gpu(DeviceContext& context, const Problem& problem, const Selection& selection) {
  Results results;
  results.out = HostTensor(problem.q.dtype(), {problem.rows(), problem.heads(), problem.value_dim()});
  results.lse = HostTensor(DType::kFloat32, {problem.heads(), problem.rows()});
  const DeviceTensor q(context, problem.q), k(context, problem.k), v(context, problem.v);
  const DeviceTensor cu_q(context, problem.cu_seqlens_q), cu_k(context, problem.cu_seqlens_k);
  const DeviceTensor out(context, results.out), lse(context, results.lse);
  HostTensor list(DType::kInt32, {selection.blocks.shape[0], selection.blocks.shape[1], selection.blocks.shape[2]});
  for (std::int64_t i = 0; i < list.numel(); ++i) list.set(i, selection.blocks.as<std::int32_t>()[i]);
  const DeviceTensor device_list(context, list);
  Selection on_gpu = selection;
  on_gpu.blocks = device_list.view();
  AttendArgs args{q.view(), k.view(), v.view(), {}, on_gpu, problem.scale(), {out.view(), lse.view()}};
  args.batch = {cu_q.view(), cu_k.view(), problem.max_seqlen_q, problem.max_seqlen_k};
  cuda::attend(context, args);
  must(cudaStreamSynchronize(context.cuda_stream()), "attend");
  out.read(results.out);
  lse.read(results.lse);
  return results;
}

void expect_right(DeviceContext& context, const Problem& problem, const Selection& selection) {
  const Results result = attend_on_gpu(context, problem, selection);
  const cases::Mask mask(problem, selection);
  const Results dense = cases::dense_same_precision(problem, mask), exact = cases::dense_exact(problem, mask);
  constexpr double kRoundings = 4.0;
  EXPECT_TRUE(cases::within_twice(result.out, dense.out, exact.out, kRoundings)) << "out";
  EXPECT_TRUE(cases::within_twice(result.lse, dense.lse, exact.lse, kRoundings)) << "lse";
}

/// Rows of q are found in 32 bits. The refusal comes before anything is read.
TEST(CudaAttendLimits, QueriesThatSpanTooMuchAreRefused) {
  constexpr std::int64_t kRows = 9, kHeads = 2, kDim = 128;
  DeviceContext context;
  const DeviceTensor list(context, HostTensor(DType::kInt32, {kRows, kHeads, 1}));
  const DeviceTensor rows(context, HostTensor(DType::kBFloat16, {kRows, kHeads, kDim}));
  const DeviceTensor lse(context, HostTensor(DType::kFloat32, {kHeads, kRows}));
  AttendArgs args{rows.view(), rows.view(), rows.view(), {}, {}, 1.0, {rows.view(), lse.view()}};
  args.selection.kind = SelectionKind::kList;
  args.selection.block_size = 64;
  args.selection.blocks = list.view();
  args.q.stride[0] = std::int64_t{1} << 32;
  try {
    cuda::attend(context, args);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_NE(std::string(error.what()).find("64 GiB"), std::string::npos) << error.what();
  }
}

class CudaAttend : public ::testing::TestWithParam<Case> {};

TEST_P(CudaAttend, IsWithinTwiceTheErrorOfDense) {
  const Problem problem(GetParam());
  SerialContext oracle;
  const Choice choice = cases::choose(oracle, reference_backend(), problem);
  DeviceContext context;
  expect_right(context, problem, choice.selection);
  EXPECT_EQ(context.error_bits(), 0);
}

std::vector<Case> native_cases() {
  std::vector<Case> result;
  for (const Case& c : cases::all_cases()) {
    if (!is_native(c)) continue;
    result.push_back(c);
    if (c.head_dim != 64) continue;
    result.push_back(c);
    result.back().name += "_d128";
    result.back().head_dim = result.back().value_dim = 128;
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(Table, CudaAttend, ::testing::ValuesIn(native_cases()),
                         [](const auto& test) { return test.param.name; });

Case hard_case(DType dtype, std::int64_t dim, std::int64_t block_size, std::int64_t top_k,
               std::vector<std::int64_t> lengths, std::int64_t heads = 2, std::int64_t kv_heads = 1) {
  Case c;
  c.name = "hard";
  c.dtype = dtype;
  c.options.block_size = block_size;
  c.options.top_k = top_k;
  c.heads = heads, c.kv_heads = kv_heads;
  c.head_dim = c.value_dim = dim;
  c.q_lengths = c.k_lengths = std::move(lengths);
  c.seed = static_cast<std::uint64_t>(block_size * 1000 + dim);
  return c;
}

class CudaAttendShapes : public ::testing::TestWithParam<std::tuple<DType, std::int64_t, std::int64_t>> {};

TEST_P(CudaAttendShapes, BlockSizesAroundTheTiles) {
  const auto [dtype, dim, block_size] = GetParam();
  const Problem problem(hard_case(dtype, dim, block_size, 3, {block_size * 3 + 37, 1, 0, block_size + 3}));
  SerialContext oracle;
  const Choice choice = cases::choose(oracle, reference_backend(), problem);
  DeviceContext context;
  expect_right(context, problem, choice.selection);
}

INSTANTIATE_TEST_SUITE_P(
    All, CudaAttendShapes,
    ::testing::Combine(::testing::Values(DType::kBFloat16, DType::kFloat16), ::testing::Values(64, 128),
                       ::testing::Values(16, 17, 48, 64, 65, 100, 127, 128, 129, 192, 256, 300, 513)));

/// The last rows of sequences whose keys came before: units begin anywhere in a block.
TEST(CudaAttendChunks, OfLargeBlocks) {
  for (const std::int64_t dim : {64, 128}) {
    Case c = hard_case(DType::kBFloat16, dim, 300, 3, {150, 0, 700, 2}, 4, 2);
    c.k_lengths = {1001, 40, 700, 900};
    const Problem problem(c);
    SerialContext oracle;
    const Choice choice = cases::choose(oracle, reference_backend(), problem);
    DeviceContext context;
    expect_right(context, problem, choice.selection);
  }
}

/// Every row with a past lists block 0 alone: the attention sink.
TEST(CudaAttendChoice, AllRowsListBlockZero) {
  const Problem problem(hard_case(DType::kBFloat16, 128, 64, 3, {1500}, 4, 2));
  Selection selection = plan_selection(problem.options, problem.rows(), 4, 2);
  HostTensor list(DType::kInt32, {problem.rows(), 4, 2});
  for (std::int64_t i = 0; i < list.numel(); ++i) list.set(i, i % 2 == 0 && i / 8 >= 64 ? 0 : -1);
  selection.blocks = list.view();
  DeviceContext context;
  expect_right(context, problem, selection);
}

/// One choice for each key/value head, and one for all.
TEST(CudaAttendChoice, SharedByHeads) {
  for (const std::int64_t selection_heads : {2, 1}) {
    const Problem problem(hard_case(DType::kBFloat16, 64, 32, 4, {400, 77}, 6, 2));
    HostTensor list(DType::kInt32, {problem.rows(), selection_heads, 3});
    Selection selection = plan_selection(problem.options, problem.rows(), 6, 2);
    selection.blocks = list.view();
    SerialContext oracle;
    const HostTensor representatives(problem.k.dtype(),
                                     {block_rows(problem.keys(), problem.batch().sequences(), 32), 2, 64});
    reference_backend().pool(oracle, {problem.k.view(), problem.batch(), 32, representatives.view()});
    reference_backend().select(oracle, {problem.q.view(), representatives.view(), problem.batch(), selection});
    DeviceContext context;
    expect_right(context, problem, selection);
  }
}

/// A limit that cuts the work into slices of rows or of heads changes no bit; neither does a second run.
TEST(CudaAttendSlices, SameBitsWithLittleWorkspace) {
  for (const std::int64_t block_size : {64, 300}) {
    const Problem problem(hard_case(DType::kBFloat16, 128, block_size, 4, {900, 300}, 4, 2));
    SerialContext oracle;
    const Choice choice = cases::choose(oracle, reference_backend(), problem);
    DeviceContext wide;
    const Results expected = attend_on_gpu(wide, problem, choice.selection);
    const auto expect_same = [&](const Results& other) {
      EXPECT_TRUE(cases::same_bits(expected.out, other.out) && cases::same_bits(expected.lse, other.lse)) << block_size;
    };
    expect_same(attend_on_gpu(wide, problem, choice.selection));
    for (const std::int64_t kib : {400, 2200}) {
      DeviceContext narrow(kib << 10);
      expect_same(attend_on_gpu(narrow, problem, choice.selection));
      EXPECT_LE(narrow.most_held(), narrow.workspace_limit());
    }
  }
}

/// Many more tiles than the GPU works on at a time; rows here and there against plain loops in double precision.
TEST(CudaAttendLarge, SampledRows) {
  constexpr std::int64_t kTokens = 16384, kHeads = 8, kKvHeads = 4, kDim = 128;
  const auto numbers = [](std::int64_t heads, std::uint64_t seed) {  // uniform in [-1, 1), exact in bfloat16
    HostTensor tensor(DType::kBFloat16, {kTokens, heads, kDim});
    auto* bits = tensor.view().as<std::uint16_t>();
    for (std::int64_t i = 0; i < tensor.numel(); ++i) {
      seed = seed * 6364136223846793005ull + 1442695040888963407ull;
      const float value = static_cast<float>(static_cast<std::int32_t>(seed >> 56) - 128) / 128.0f;
      bits[i] = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
    }
    return tensor;
  };
  for (const auto& [block_size, budget] : {std::pair<std::int64_t, std::int64_t>{128, 7}, {512, 2}, {100, 4}}) {
    Problem problem;
    problem.options.block_size = block_size;
    problem.q = numbers(kHeads, 1), problem.k = numbers(kKvHeads, 2), problem.v = numbers(kKvHeads, 3);
    problem.cu_seqlens_q = problem.cu_seqlens_k = cases::offsets_of({kTokens});
    problem.max_seqlen_q = problem.max_seqlen_k = kTokens;
    HostTensor list(DType::kInt32, {kTokens, kHeads, budget});
    std::mt19937 random(7);
    for (std::int64_t row = 0; row < kTokens; ++row) {
      for (std::int64_t head = 0; head < kHeads; ++head) {
        const std::int64_t own = row / block_size;
        for (std::int64_t slot = 0; slot < budget; ++slot) {
          const std::int64_t low = slot * own / budget, high = (slot + 1) * own / budget;
          const std::int64_t block = own <= budget ? (slot < own ? slot : -1) : low + random() % (high - low);
          list.view().as<std::int32_t>()[(row * kHeads + head) * budget + slot] = static_cast<std::int32_t>(block);
        }
      }
    }
    Selection selection;
    selection.kind = SelectionKind::kList;
    selection.block_size = block_size;
    selection.blocks = list.view();
    DeviceContext context(std::int64_t{60} << 20);  // several slices
    const Results result = attend_on_gpu(context, problem, selection);
    for (std::int64_t row = 5; row < kTokens; row += 131) {
      const std::int64_t head = row % kHeads, kv_head = head * kKvHeads / kHeads, own = row / block_size;
      std::vector<double> out(kDim), reach(kDim);  // sums of p * v and of p * |v|
      std::vector<std::int64_t> keys;
      for (std::int64_t slot = 0; slot < budget; ++slot) {
        const std::int64_t block = list.view().as<std::int32_t>()[(row * kHeads + head) * budget + slot];
        for (std::int64_t i = 0; block >= 0 && i < block_size; ++i) keys.push_back(block * block_size + i);
      }
      for (std::int64_t key = own * block_size; key <= row; ++key) keys.push_back(key);
      double sum = 0.0;
      for (const std::int64_t key : keys) {
        double score = 0.0;
        for (std::int64_t i = 0; i < kDim; ++i) {
          score +=
              problem.q.get((row * kHeads + head) * kDim + i) * problem.k.get((key * kKvHeads + kv_head) * kDim + i);
        }
        const double weight = std::exp(score * problem.scale());
        sum += weight;
        for (std::int64_t i = 0; i < kDim; ++i) {
          const double value = problem.v.get((key * kKvHeads + kv_head) * kDim + i);
          out[static_cast<std::size_t>(i)] += weight * value;
          reach[static_cast<std::size_t>(i)] += weight * std::fabs(value);
        }
      }
      ASSERT_NEAR(result.lse.get(head * kTokens + row), std::log(sum), 1e-4) << row << " block " << block_size;
      for (std::int64_t i = 0; i < kDim; ++i) {
        // Probabilities, partial results and the result are rounded to bfloat16, by 2^-9 at most each.
        ASSERT_NEAR(result.out.get((row * kHeads + head) * kDim + i), out[static_cast<std::size_t>(i)] / sum,
                    3 * 0x1p-9 * reach[static_cast<std::size_t>(i)] / sum)
            << row << " " << i << " block " << block_size;
      }
    }
  }
}

/// A NaN or infinity in v is seen in the rows that attend it, and in no other.
TEST(CudaAttendSpoiled, ValuesSpoilOnlyTheRowsThatAttendThem) {
  for (const std::int64_t block_size : {48, 100, 128}) {
    for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
      Problem problem(hard_case(DType::kBFloat16, 128, block_size, 3, {700}, 2, 1));
      SerialContext oracle;
      const Choice choice = cases::choose(oracle, reference_backend(), problem);
      const cases::Mask mask(problem, choice.selection);
      const Results exact = cases::dense_exact(problem, mask);
      constexpr std::int64_t kKey = 333, kColumn = 5;
      problem.v.set(kKey * 128 + kColumn, bad);
      DeviceContext context;
      const Results result = attend_on_gpu(context, problem, choice.selection);
      for (std::int64_t row = 0; row < problem.rows(); ++row) {
        for (std::int64_t head = 0; head < 2; ++head) {
          for (std::int64_t column = 0; column < 128; ++column) {
            const std::int64_t at = (row * 2 + head) * 128 + column;
            if (mask.sees(row, head, kKey) && column == kColumn) {
              ASSERT_FALSE(std::isfinite(result.out.get(at))) << row << " " << head;
            } else {
              ASSERT_NEAR(result.out.get(at), exact.out.get(at), 0.03) << row << " " << head << " " << column;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace moba::test
