// invert: the transpose of every list of the table.
#include "cases/compare.h"
#include "core/support.h"

namespace moba::test {
namespace {

using cases::HostTensor;
using cases::Problem;

struct InverseMemory {
  HostTensor offsets, entries;
};

InverseMemory invert_list(Context& context, const Backend& backend, const PackedBatch& batch,
                          const Selection& selection, std::int64_t rows, std::int64_t total_keys) {
  const std::int64_t bins =
      selection.selection_heads() * block_rows(total_keys, batch.sequences(), selection.block_size);
  InverseMemory result;
  result.offsets = HostTensor(DType::kInt64, {bins + 1});
  result.entries = HostTensor(DType::kInt32, {rows * selection.selection_heads() * selection.budget(), 2});
  invert(context, backend, {batch, selection, rows, total_keys, {result.offsets.view(), result.entries.view()}});
  return result;
}

class InvertTest : public BackendTest {};

TEST_P(InvertTest, IsTheTransposeInRowOrder) {
  for (const cases::Case& c : cases::all_cases()) {
    if (c.options.kind != Kind::kMoba || c.options.compat_topk1_full || c.dtype != DType::kFloat32) continue;
    const Problem problem(c);
    const cases::Choice choice = cases::choose(context, reference_backend(), problem);
    const Selection& selection = choice.selection;
    const InverseMemory inverse =
        invert_list(context, backend(), problem.batch(), selection, problem.rows(), problem.keys());

    // By definition: walk heads and block rows, and for each the rows in order.
    const std::int64_t bins = block_rows(problem.keys(), problem.batch().sequences(), selection.block_size);
    std::vector<std::vector<std::pair<std::int32_t, std::int32_t>>> expected(
        static_cast<std::size_t>(selection.selection_heads() * bins));
    const std::vector<double> q = problem.cu_seqlens_q.values(), k = problem.cu_seqlens_k.values();
    for (std::size_t s = 0; s + 1 < q.size(); ++s) {
      const std::int64_t first = static_cast<std::int64_t>(k[s]) / selection.block_size + static_cast<std::int64_t>(s);
      for (std::int64_t row = static_cast<std::int64_t>(q[s]); row < static_cast<std::int64_t>(q[s + 1]); ++row) {
        for (std::int64_t g = 0; g < selection.selection_heads(); ++g) {
          for (std::int64_t slot = 0; slot < selection.budget(); ++slot) {
            const std::int64_t at = (row * selection.selection_heads() + g) * selection.budget() + slot;
            const double block = choice.list.get(at);
            if (block < 0) continue;
            expected[static_cast<std::size_t>(g * bins + first + static_cast<std::int64_t>(block))].emplace_back(row,
                                                                                                                 slot);
          }
        }
      }
    }
    double offset = 0;
    for (std::size_t bin = 0; bin < expected.size(); ++bin) {
      ASSERT_EQ(inverse.offsets.get(static_cast<std::int64_t>(bin)), offset) << c.name << " bin " << bin;
      for (const auto& [row, slot] : expected[bin]) {
        ASSERT_EQ(inverse.entries.get(static_cast<std::int64_t>(offset) * 2), row) << c.name << " bin " << bin;
        ASSERT_EQ(inverse.entries.get(static_cast<std::int64_t>(offset) * 2 + 1), slot) << c.name << " bin " << bin;
        ++offset;
      }
    }
    ASSERT_EQ(inverse.offsets.get(inverse.offsets.numel() - 1), offset) << c.name;
  }
}

// The worked example of selection.h.
TEST_P(InvertTest, WorkedExample) {
  const HostTensor offsets = cases::offsets_of({10});
  PackedBatch batch{offsets.view(), offsets.view(), 10, 10};
  HostTensor list(DType::kInt32, {10, 1, 1});
  list.fill({-1, -1, -1, -1, 0, 0, 0, 0, 0, 1});
  Selection selection;
  selection.kind = SelectionKind::kList;
  selection.block_size = 4;
  selection.blocks = list.view();
  const InverseMemory inverse = invert_list(context, backend(), batch, selection, 10, 10);
  EXPECT_EQ(inverse.offsets.values(), (std::vector<double>{0, 5, 6, 6}));
  const std::vector<double> entries = inverse.entries.values();
  EXPECT_EQ(std::vector<double>(entries.begin(), entries.begin() + 12),
            (std::vector<double>{4, 0, 5, 0, 6, 0, 7, 0, 8, 0, 9, 0}));
  EXPECT_EQ(context.error_bits, 0);
}

// Blocks that are not in the past are left out and reported.
TEST_P(InvertTest, LeavesOutWhatIsNotInThePast) {
  const HostTensor offsets = cases::offsets_of({10});
  PackedBatch batch{offsets.view(), offsets.view(), 10, 10};
  HostTensor list(DType::kInt32, {10, 1, 2});
  list.fill({5, -1, -1, -1, -1, -1, -7, -1, /*row 4*/ 0, 0, 0, 1, 1, 0, -1, -1, /*row 8*/ 2000000000, 1, 1, 0});
  Selection selection;
  selection.kind = SelectionKind::kList;
  selection.block_size = 4;
  selection.blocks = list.view();
  const InverseMemory inverse = invert_list(context, backend(), batch, selection, 10, 10);
  EXPECT_EQ(inverse.offsets.values(), (std::vector<double>{0, 3, 5, 5}));
  const std::vector<double> entries = inverse.entries.values();
  EXPECT_EQ(std::vector<double>(entries.begin(), entries.begin() + 10),
            (std::vector<double>{4, 0, 5, 0, 6, 1, 8, 1, 9, 0}));
  EXPECT_EQ(context.error_bits, kSelectionOutOfRange);
}

INSTANTIATE_TEST_SUITE_P(All, InvertTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace moba::test
