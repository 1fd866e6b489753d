// attend_backward on the GPU against attention written from its definition: by the 2x-error rule, on the shared table
// of cases and on what the table does not hold; and the same bits in every run.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cases/cases.h"
#include "cases/compare.h"
#include "cases/dense.h"
#include "cuda/attend_backward.h"
#include "cuda/device.h"

namespace moba {
namespace {

using cases::Case;
using cases::Choice;
using cases::HostTensor;
using cases::Problem;
using cases::Results;
using test::DeviceContext;
using test::DeviceTensor;

/// The reference's forward in the dtype of the problem, then the GPU's gradients.
Results run_on_gpu(const Problem& problem, const Selection& selection, std::int64_t limit = std::int64_t{1536} << 20) {
  SerialContext host;
  Results r = cases::run(host, reference_backend(), problem, selection, false);
  r.dq = HostTensor(problem.q.dtype(), {problem.rows(), problem.heads(), problem.head_dim()});
  r.dk = HostTensor(problem.q.dtype(), {problem.keys(), problem.kv_heads(), problem.head_dim()});
  r.dv = HostTensor(problem.q.dtype(), {problem.keys(), problem.kv_heads(), problem.head_dim()});
  DeviceContext context(limit);
  const DeviceTensor q(context, problem.q), k(context, problem.k), v(context, problem.v);
  const DeviceTensor dout(context, problem.dout), dlse(context, problem.dlse);
  const DeviceTensor cu_q(context, problem.cu_seqlens_q), cu_k(context, problem.cu_seqlens_k);
  const DeviceTensor out(context, r.out), lse(context, r.lse);
  const DeviceTensor dq(context, r.dq), dk(context, r.dk), dv(context, r.dv);
  HostTensor list_host(DType::kInt32,
                       {selection.blocks.shape[0], selection.blocks.shape[1], selection.blocks.shape[2]});
  for (std::int64_t i = 0; i < list_host.numel(); ++i) {
    list_host.set(i, static_cast<double>(selection.blocks.as<std::int32_t>()[i]));
  }
  const DeviceTensor list(context, list_host);
  Selection on_gpu = selection;
  on_gpu.blocks = list.view();
  PackedBatch batch = problem.batch();
  batch.cu_seqlens_q = cu_q.view();
  batch.cu_seqlens_k = cu_k.view();
  cuda::attend_backward(context, {q.view(), k.view(), v.view(), batch, on_gpu, problem.scale(), out.view(), lse.view(),
                                  dout.view(), dlse.view(), dq.view(), dk.view(), dv.view()});
  dq.read(r.dq);
  dk.read(r.dk);
  dv.read(r.dv);
  return r;
}

void expect_right(const Problem& problem, const Selection& selection, std::int64_t limit = std::int64_t{1536} << 20) {
  const cases::Mask mask(problem, selection);
  cases::expect_within_twice(run_on_gpu(problem, selection, limit), cases::dense_same_precision(problem, mask),
                             cases::dense_exact(problem, mask), 2.0);
}

bool is_native(const Case& c) {
  return c.dtype != DType::kFloat32 && c.options.kind == Kind::kMoba && !c.options.compat_topk1_full &&
         c.head_dim == c.value_dim && (c.head_dim == 64 || c.head_dim == 128) && c.options.block_size >= 8;
}

std::vector<Case> native_cases() {
  std::vector<Case> native;
  for (Case c : cases::all_cases()) {
    if (!is_native(c)) continue;
    for (std::int64_t dim : {64, 128}) {
      if (dim == 64) c.name += "_d64";
      if (dim == 128) c.name.replace(c.name.size() - 2, 2, "128");
      c.head_dim = c.value_dim = dim;
      native.push_back(c);
    }
  }
  return native;
}

class CudaBackwardTable : public ::testing::TestWithParam<Case> {};

TEST_P(CudaBackwardTable, AgreesWithTheDefinition) {
  const Problem problem(GetParam());
  SerialContext host;
  const Choice choice = cases::choose(host, reference_backend(), problem);
  if (choice.selection.kind != SelectionKind::kList) GTEST_SKIP() << "no list";
  ASSERT_NO_THROW(expect_right(problem, choice.selection));
}

INSTANTIATE_TEST_SUITE_P(Cases, CudaBackwardTable, ::testing::ValuesIn(native_cases()),
                         [](const auto& of) { return of.param.name; });

Problem problem_of(DType dtype, std::int64_t dim, std::int64_t block, std::int64_t top_k, std::int64_t heads,
                   std::int64_t kv_heads, std::vector<std::int64_t> q_lengths, std::vector<std::int64_t> k_lengths) {
  Case c;
  c.name = "own";
  c.dtype = dtype;
  c.options.block_size = block;
  c.options.top_k = top_k;
  c.heads = heads;
  c.kv_heads = kv_heads;
  c.head_dim = c.value_dim = dim;
  c.q_lengths = std::move(q_lengths);
  c.k_lengths = std::move(k_lengths);
  c.seed = 7;
  return Problem(c);
}

/// `list` must outlive it.
Selection selection_of(const HostTensor& list, std::int64_t block_size) {
  Selection selection;
  selection.kind = SelectionKind::kList;
  selection.block_size = block_size;
  selection.blocks = list.view();
  return selection;
}

void expect_same_bits(const Results& a, const Results& b) {
  EXPECT_TRUE(same_bits(a.dq, b.dq) && same_bits(a.dk, b.dk) && same_bits(a.dv, b.dv));
}

TEST(CudaBackward, LargerBlocksThanAUnit) {
  for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (std::int64_t dim : {64, 128}) {
      for (std::int64_t block : {200, 256, 300}) {
        SCOPED_TRACE(std::to_string(dim) + " block " + std::to_string(block));
        const Problem problem = problem_of(dtype, dim, block, 3, 4, 2, {520, 70}, {520, 330});
        SerialContext host;
        const Choice choice = cases::choose(host, reference_backend(), problem);
        // All at once; chunks of heads; rounds of rows.
        for (std::int64_t kibibytes : {1536 << 10, 1024, 700}) {
          SCOPED_TRACE(std::to_string(kibibytes) + " KiB");
          ASSERT_NO_THROW(expect_right(problem, choice.selection, kibibytes << 10));
        }
      }
    }
  }
}

/// Every row chooses block 0; and with little scratch: chunks of heads.
TEST(CudaBackward, OnePopularBlockAndLittleScratch) {
  for (std::int64_t selection_heads : {4, 2, 1}) {
    const Problem problem = problem_of(DType::kBFloat16, 128, 64, 2, 4, 2, {2600}, {2600});
    HostTensor list(DType::kInt32, {2600, selection_heads, 1});
    for (std::int64_t row = 0; row < 2600; ++row) {
      for (std::int64_t head = 0; head < selection_heads; ++head) {
        list.set(row * selection_heads + head, row < 64                    ? -1.0
                                               : row % 7 == 0 && head == 1 ? double(row / 64 - 1)
                                                                           : 0.0);
      }
    }
    const Selection selection = selection_of(list, 64);
    const cases::Mask mask(problem, selection);
    const Results same = cases::dense_same_precision(problem, mask), exact = cases::dense_exact(problem, mask);
    const Results once = run_on_gpu(problem, selection);
    cases::expect_within_twice(once, same, exact, 2.0);
    expect_same_bits(once, run_on_gpu(problem, selection));
    SCOPED_TRACE("1 MiB, selection heads " + std::to_string(selection_heads));
    ASSERT_NO_THROW(cases::expect_within_twice(run_on_gpu(problem, selection, 1 << 20), same, exact, 2.0));
  }
}

/// The units of a block add to the same places in turns: the same bits each time; with queries that begin inside of a
/// block, and with little scratch, where chunks of rows cut the tiles.
TEST(CudaBackward, UnitsOfABlockTakeTurns) {
  const Problem problem = problem_of(DType::kBFloat16, 128, 600, 2, 8, 2, {1430, 100}, {1700, 1300});
  HostTensor list(DType::kInt32, {1530, 8, 1});
  for (std::int64_t row = 0; row < 1530; ++row) {
    const std::int64_t own = (row < 1430 ? row + 270 : row - 1430 + 1200) / 600;
    for (std::int64_t head = 0; head < 8; ++head) {
      list.set(row * 8 + head, own == 0 ? -1.0 : head == 1 ? double(own - 1) : 0.0);
    }
  }
  const Selection selection = selection_of(list, 600);
  const cases::Mask mask(problem, selection);
  const Results same = cases::dense_same_precision(problem, mask), exact = cases::dense_exact(problem, mask);
  const Results once = run_on_gpu(problem, selection);
  cases::expect_within_twice(once, same, exact, 2.0);
  for (int run = 0; run < 5; ++run) {
    expect_same_bits(once, run_on_gpu(problem, selection));
  }
  for (std::int64_t mebibytes : {24, 14, 11}) {
    SCOPED_TRACE(std::to_string(mebibytes) + " MiB");
    ASSERT_NO_THROW(cases::expect_within_twice(run_on_gpu(problem, selection, mebibytes << 20), same, exact, 2.0));
  }
}

/// Row `at` of [rows, 128]: NaN where it must be, the bits of before where it may not change.
void expect_row(const HostTensor& got, const HostTensor& before, std::int64_t at, bool may_change, bool must_be_nan) {
  for (std::int64_t i = at * 128; i < (at + 1) * 128; ++i) {
    ASSERT_TRUE(!must_be_nan || std::isnan(got.get(i))) << "row " << at;
    ASSERT_TRUE(may_change || got.get(i) == before.get(i)) << "row " << at;
  }
}

/// What is no number reaches the gradients of what attends it. What a mask hides is multiplied by zero on the tensor
/// cores, and zero times NaN is NaN: so it may reach others of the own block too, but nothing beyond.
TEST(CudaBackward, NotANumberStaysInItsBlock) {
  constexpr std::int64_t kRows = 1430, kToken = 650, kHeads = 4, kKvHeads = 2, kGroup = 2;
  for (const std::int64_t block : {64, 600}) {
    Problem problem = problem_of(DType::kBFloat16, 128, block, 2, kHeads, kKvHeads, {kRows}, {kRows});
    SerialContext host;
    const Choice choice = cases::choose(host, reference_backend(), problem);
    const cases::Mask mask(problem, choice.selection);
    const Results clean = run_on_gpu(problem, choice.selection);
    const auto same_block = [&](std::int64_t a, std::int64_t b) { return a / block == b / block; };
    for (HostTensor* tensor : {&problem.q, &problem.dout, &problem.k, &problem.v}) {
      const bool of_key = tensor == &problem.k || tensor == &problem.v;
      SCOPED_TRACE(std::to_string(block) + (of_key ? ": k or v" : ": q or dout"));
      const std::int64_t element = (kToken * (of_key ? kKvHeads : kHeads) + 1) * 128 + 5;  // of head 1
      const double number = tensor->get(element);
      tensor->set(element, std::numeric_limits<double>::quiet_NaN());
      const Results r = run_on_gpu(problem, choice.selection);
      tensor->set(element, number);
      const auto spoiled = [&](std::int64_t row, std::int64_t head) {
        return of_key ? head / kGroup == 1 && mask.sees(row, head, kToken) : row == kToken && head == 1;
      };
      for (std::int64_t row = 0; row < kRows; ++row) {
        for (std::int64_t head = 0; head < kHeads; ++head) {
          const bool near = of_key && head / kGroup == 1 && same_block(row, kToken);
          expect_row(r.dq, clean.dq, row * kHeads + head, spoiled(row, head) || near, spoiled(row, head));
        }
      }
      for (std::int64_t key = 0; key < kRows; ++key) {
        for (std::int64_t kv_head = 0; kv_head < kKvHeads; ++kv_head) {
          bool attends = false, near = false;  // a spoiled row
          for (std::int64_t i = 0; i < kRows * kGroup; ++i) {
            const std::int64_t row = i / kGroup, head = kv_head * kGroup + i % kGroup;
            if (!spoiled(row, head)) continue;
            attends = attends || mask.sees(row, head, key);
            near = near || same_block(row, key);
          }
          expect_row(r.dk, clean.dk, key * kKvHeads + kv_head, attends || near, attends);
          expect_row(r.dv, clean.dv, key * kKvHeads + kv_head, attends || near, false);
        }
      }
    }
  }
}

}  // namespace
}  // namespace moba
