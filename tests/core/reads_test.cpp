// The count of what attention reads, against counting key by key.
#include <random>
#include <set>

#include "core/paged_support.h"
#include "sequences.h"

namespace moba::test {
namespace {

using cases::Case;
using cases::Choice;
using cases::HostTensor;
using cases::Problem;

Problem packed_problem(Kind kind, std::int64_t heads, std::int64_t kv_heads) {
  Case c;
  c.options.kind = kind;
  c.options.block_size = 8;
  c.options.top_k = 3;
  c.options.window = 11;
  c.options.sink = 3;
  c.heads = heads;
  c.kv_heads = kv_heads;
  c.head_dim = 16;
  c.value_dim = 24;
  c.q_lengths = {1, 5, 0, 4, 30, 3};
  c.k_lengths = {50, 61, 7, 2, 30, 8};
  c.seed = 3;
  return Problem(c);
}

AttendArgs args_of(const Problem& problem, const Selection& selection) {
  return {problem.q.view(), problem.k.view(), problem.v.view(), problem.batch(), selection, 0.0, {}};
}

TEST(Reads, AreTheUnionOfTheRowsOfAGroup) {
  TestContext context;
  for (Kind kind : {Kind::kMoba, Kind::kFull, Kind::kWindow}) {
    for (const auto& [heads, kv_heads] : std::vector<std::pair<std::int64_t, std::int64_t>>{{4, 4}, {4, 2}, {6, 1}}) {
      const Problem problem = packed_problem(kind, heads, kv_heads);
      const Choice choice = cases::choose(context, cpu_backend(), problem);
      const HostTensor per_head(DType::kInt64, {6, kv_heads});
      ReadCount count;
      count.blocks_of_head = per_head.view();
      count.keys_read = 12345;  // of an earlier call
      count_reads(context, args_of(problem, choice.selection), count);

      const Sequences sequences(context, problem.batch(), problem.rows(), problem.keys());
      std::int64_t keys_read = 0, keys_chosen = 0, blocks_read = 0, blocks_chosen = 0, representatives = 0;
      for (std::int64_t s = 0; s < sequences.count(); ++s) {
        const Sequence sequence = sequences[s];
        for (std::int64_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
          std::set<std::int64_t> keys, blocks;
          for (std::int64_t row = sequence.q_begin; row < sequence.q_begin + sequence.q_length; ++row) {
            const std::int64_t position = sequence.position(row);
            for (std::int64_t head = 0; head < heads && position >= 0; ++head) {
              if (head * kv_heads / heads != kv_head) continue;
              std::set<std::int64_t> of_row;
              for_each_key_range(context, choice.selection, row, position, head, heads,
                                 [&](std::int64_t begin, std::int64_t end) {
                                   for (; begin < end; ++begin) of_row.insert(begin);
                                 });
              std::set<std::int64_t> blocks_of_row;
              for (std::int64_t key : of_row) blocks_of_row.insert(key / 8);
              keys.insert(of_row.begin(), of_row.end());
              blocks.insert(blocks_of_row.begin(), blocks_of_row.end());
              keys_chosen += static_cast<std::int64_t>(of_row.size());
              blocks_chosen += static_cast<std::int64_t>(blocks_of_row.size());
            }
          }
          keys_read += static_cast<std::int64_t>(keys.size());
          blocks_read += static_cast<std::int64_t>(blocks.size());
          EXPECT_EQ(per_head.get(s * kv_heads + kv_head),
                    kind == Kind::kMoba ? static_cast<double>(blocks.size()) : 0.0);
        }
        if (sequence.q_length > 0) representatives += (sequence.k_length - 1) / 8 * kv_heads;
      }
      const bool has_list = kind == Kind::kMoba;
      EXPECT_EQ(count.keys_read, keys_read);
      EXPECT_EQ(count.keys_chosen, keys_chosen);
      EXPECT_EQ(count.blocks_read, has_list ? blocks_read : 0);
      EXPECT_EQ(count.blocks_chosen, has_list ? blocks_chosen : 0);
      EXPECT_EQ(count.key_bytes, keys_read * (16 + 24) * 4);
      EXPECT_EQ(count.representative_bytes, has_list ? representatives * 16 * 4 : 0);
    }
  }
}

// One choice for the group reads k blocks; heads that choose for themselves read more, but for MHA.
TEST(Reads, OfADecodeStep) {
  TestContext context;
  for (std::int64_t kv_heads : {8, 2, 1}) {
    Case c;
    c.heads = 8;
    c.kv_heads = kv_heads;
    c.options.block_size = 4;
    c.options.top_k = 5;
    c.q_lengths = {1};
    c.k_lengths = {400};
    c.seed = 9;
    const Problem problem(c);
    Choice choice = cases::choose(context, cpu_backend(), problem);
    ReadCount own, shared;
    count_reads(context, args_of(problem, choice.selection), own);
    EXPECT_EQ(own.blocks_chosen, 8 * 5);
    if (kv_heads == 8) {
      EXPECT_EQ(own.shared_ratio(), 1.0);
    } else {
      EXPECT_LT(own.shared_ratio(), 1.0);
      EXPECT_GT(own.blocks_read, kv_heads * 5);
    }
    choice.list = HostTensor(DType::kInt32, {1, kv_heads, 4});
    choice.selection.blocks = choice.list.view();
    select(context, cpu_backend(), problem.options, problem.q.view(), problem.k.view(), {}, problem.batch(),
           choice.selection);
    count_reads(context, args_of(problem, choice.selection), shared);
    EXPECT_EQ(shared.blocks_chosen, 8 * 5);
    EXPECT_EQ(shared.blocks_read, kv_heads * 5);
    EXPECT_EQ(shared.shared_ratio(), static_cast<double>(kv_heads) / 8);
  }
}

TEST(Reads, CachesFillThem) {
  TestContext context;
  Case c;
  c.options.block_size = 8;
  c.q_lengths = c.k_lengths = {60};
  const Problem universe(c);
  PagedModel model(context, cpu_backend(), universe,
                   {.pages = 40, .page_size = 4, .block_size = 8, .sequences = 2, .width = 15});
  model.append_tokens({{0, 60}, {1, 17}}, 0);
  ReadCount reads;
  model.attend({{1, 1}, {0, 1}}, universe.options, &reads);
  EXPECT_EQ(reads.blocks_chosen, 4 * 6);
  EXPECT_GE(reads.blocks_read, 2 * 6);
  EXPECT_LE(reads.blocks_read, reads.blocks_chosen);
  EXPECT_EQ(reads.representative_bytes, (7 + 2) * 2 * 64 * 4);
}

TEST(Reads, RefuseAWrongTable) {
  TestContext context;
  const Problem problem = packed_problem(Kind::kMoba, 4, 2);
  const Choice choice = cases::choose(context, cpu_backend(), problem);
  const HostTensor wrong(DType::kInt64, {6, 3});
  ReadCount count;
  count.blocks_of_head = wrong.view();
  EXPECT_THROW(count_reads(context, args_of(problem, choice.selection), count), Error);
  count = {};
  AttendArgs args = args_of(problem, choice.selection);
  args.k.shape[1] = 3;
  EXPECT_THROW(count_reads(context, args, count), Error);
}

}  // namespace
}  // namespace moba::test
