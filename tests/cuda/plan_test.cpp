// What the host plans for the kernels, from shapes alone: no GPU is needed.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "cuda/backward_plan.h"
#include "cuda/divisor.h"
#include "cuda/segments.h"
#include "cuda/slices.h"
#include "moba/error.h"

namespace moba::cuda {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

TEST(Divisor, IsExactAroundEveryMultipleNearTheEnds) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  std::vector<std::int64_t> divisors;
  for (std::int64_t d = 1; d <= 1100; ++d) divisors.push_back(d);
  for (int bit = 11; bit < 31; ++bit) {
    for (const std::int64_t near : {-1, 0, 1}) divisors.push_back((std::int64_t{1} << bit) + near);
  }
  divisors.insert(divisors.end(), {kMost - 1, kMost, 1000003, 715827883});
  for (const std::int64_t d : divisors) {
    const Divisor divisor(d);
    const std::int64_t last = kMost / d;
    for (const std::int64_t multiple : {std::int64_t{0}, std::int64_t{1}, std::int64_t{2}, last / 2, last - 1, last}) {
      for (const std::int64_t near : {-1, 0, 1}) {
        const std::int64_t n = multiple * d + near;
        if (n < 0 || n > kMost) continue;
        ASSERT_EQ(divisor.quotient(static_cast<std::int32_t>(n)), n / d) << n << " / " << d;
      }
    }
    ASSERT_EQ(divisor.quotient(static_cast<std::int32_t>(kMost)), kMost / d) << d;
  }
}

struct Shape {
  std::int64_t rows, lists, budget, block_rows;
};

std::vector<Shape> shapes() {
  std::vector<Shape> result;
  for (const std::int64_t rows : {1, 255, 8192, 131072, 1000003, 1 << 26}) {
    for (const std::int64_t lists : {1, 3, 16, 128}) {
      for (const std::int64_t budget : {1, 2, 7, 63}) {
        for (const std::int64_t block_rows : {1, 33, 257, 1025, 4097, 65537}) {
          result.push_back({rows, lists, budget, block_rows});
        }
      }
    }
  }
  return result;
}

TEST(ItemRows, AreWholeTilesAndSmallWhereBlocksAreStreamed) {
  const HeadGroups groups = head_groups(16, 16, 16);
  for (const std::int64_t head_dim : {64, 128}) {
    const std::int64_t tile = history_tile_rows(head_dim);
    for (const std::int64_t block_size : {16, 64, 100, 128, 129, 512, 4096}) {
      for (const Shape& shape : shapes()) {
        const std::int64_t rows =
            item_rows_for({0, shape.rows, 0, shape.lists}, shape.budget, block_size, head_dim, groups, 132);
        ASSERT_EQ(rows % tile, 0) << "D " << head_dim << ", B " << block_size << ", " << shape.rows << " rows";
        ASSERT_GE(rows, tile);
        ASSERT_LE(rows, block_size > 128 ? 256 : 1024);
      }
    }
  }
}

TEST(Segments, FitTheirCountersAndTheirScratch) {
  for (const Shape& shape : shapes()) {
    const Slice slice{0, shape.rows, 0, shape.lists};
    const std::int64_t rows = segment_rows_for(slice, shape.budget, shape.block_rows);
    ASSERT_EQ(rows % 256, 0);
    ASSERT_GE(rows, 256);
    ASSERT_LT(rows, 1 << 16);
    // Scratch for a slice is enough for every smaller one that is built in it.
    const std::int64_t words = count_words(slice, shape.budget, shape.block_rows);
    for (const std::int64_t fewer_rows : {shape.rows, shape.rows / 2 + 1, shape.rows / 7 + 1}) {
      for (std::int64_t lists = 1; lists <= shape.lists; lists *= 2) {
        const Slice part{0, fewer_rows, 0, lists};
        const std::int64_t part_rows = segment_rows_for(part, shape.budget, shape.block_rows);
        ASSERT_LE(lists * ((fewer_rows + part_rows - 1) / part_rows + 1) * shape.block_rows, words)
            << shape.rows << " " << shape.lists << " " << shape.budget << " " << shape.block_rows << ": " << fewer_rows
            << " " << lists;
      }
    }
  }
}

TEST(Segments, AreManyEnoughForTheMachineAndNoMore) {
  // (128, 8) at 128K, 16 heads; (512, 3) at 128K and 8K.
  EXPECT_EQ(segment_rows_for({0, 131072, 0, 16}, 7, 1025), 1024);
  EXPECT_EQ(segment_rows_for({0, 131072, 0, 16}, 2, 257), 1024);
  EXPECT_EQ(segment_rows_for({0, 8192, 0, 16}, 2, 17), 256);
}

TEST(WorkItems, AreBoundedByBlocksAndEntries) {
  // Every block may have one item that is not full.
  EXPECT_EQ(items_for({0, 1000, 0, 4}, 7, 10, 128), 4 * 10 + 1000 * 4 * 7 / 128);
  EXPECT_EQ(items_for({0, 0, 0, 4}, 7, 10, 128), 40);
}

TEST(Slices, HoldWholeListsFirstAndThenRowTiles) {
  constexpr std::int64_t kPairBytes = 260, kRowTile = 64;
  const auto largest = [&](std::int64_t limit) {
    return largest_slice(131072, 16, 7, 1025, 1024, kPairBytes, kRowTile, limit);
  };
  const auto bytes = [&](const Slice& slice) {
    return BlockInverse::bytes(slice, 7, 1025, 1024) + slice.rows * slice.lists * 7 * kPairBytes;
  };
  EXPECT_EQ(largest(64 * 1024 * kMiB).lists, 16);
  for (const std::int64_t limit : {20 * kMiB, 100 * kMiB, 512 * kMiB, 1536 * kMiB}) {
    const Slice slice = largest(limit);
    EXPECT_LE(bytes(slice), limit);
    EXPECT_TRUE(slice.rows == 131072 || slice.lists == 1) << "rows are cut only where one list does not fit";
    EXPECT_TRUE(slice.rows == 131072 || slice.rows % kRowTile == 0);
    EXPECT_GE(slice.rows, kRowTile);
  }
}

TEST(Slices, NameTheLeastLimit) {
  try {
    largest_slice(4096, 1, 7, 33, 1024, 260, 64, 1000);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kWorkspace);
    const std::string text = error.what();
    const std::size_t at = text.find("at least ");
    ASSERT_NE(at, std::string::npos) << text;
    const std::int64_t least = std::stoll(text.substr(at + 9));
    EXPECT_EQ(largest_slice(4096, 1, 7, 33, 1024, 260, 64, least).rows, 64);
    EXPECT_THROW(largest_slice(4096, 1, 7, 33, 1024, 260, 64, least - 1), Error);
  }
}

TEST(HeadGroups, DivideTheHeadsOfAList) {
  const HeadGroups own = head_groups(32, 8, 32), shared = head_groups(32, 8, 8), one = head_groups(32, 8, 1);
  EXPECT_EQ(own.heads_per_list, 1);
  EXPECT_EQ(own.units_per_list, 1);
  EXPECT_EQ(own.heads_per_kv, 4);
  EXPECT_EQ(shared.heads_per_list, 4);
  EXPECT_EQ(shared.units_per_list, 1);
  EXPECT_EQ(shared.heads_per_unit, 4);
  EXPECT_EQ(one.heads_per_list, 32);
  EXPECT_EQ(one.units_per_list, 8);
  EXPECT_EQ(one.heads_per_unit, 4);
}

BackwardShapes backward_shapes(std::int64_t rows, std::int64_t heads, std::int64_t kv_heads, std::int64_t dim,
                               std::int64_t budget, std::int64_t block_size) {
  return {rows, rows, heads, kv_heads, dim, budget, heads, block_size, rows / block_size + 2, rows};
}

TEST(BackwardPlan, StaysWithinTheLimitAndWhatDenseAttentionHolds) {
  for (const std::int64_t rows : {1, 600, 8192, 131072}) {
    for (const std::int64_t kv_heads : {1, 2, 16}) {
      for (const std::int64_t block_size : {64, 300, 512, 4096}) {
        for (const std::int64_t mebibytes : {1, 8, 64, 1536}) {
          const BackwardShapes shapes = backward_shapes(rows, 2 * kv_heads, kv_heads, 128, 7, block_size);
          try {
            const BackwardPlan plan(shapes, mebibytes * kMiB);
            const std::int64_t beside = rows * 2 * kv_heads * 128 * 4;
            ASSERT_LE(plan.bytes(), mebibytes * kMiB + (plan.turns ? std::min(plan.sums * 4, beside) : beside));
            ASSERT_TRUE(plan.round_rows == rows || plan.round_rows % 128 == 0);
            ASSERT_GE(plan.chunks * plan.chunk_kv_heads, plan.round_kv_heads);
            ASSERT_LT((plan.chunks - 1) * plan.chunk_kv_heads, plan.round_kv_heads);
            ASSERT_EQ(plan.sums > 0, plan.round_rows < rows);
          } catch (const Error& error) {
            ASSERT_EQ(error.code(), ErrorCode::kWorkspace);
            ASSERT_LT(mebibytes, 1536) << error.what();
          }
        }
      }
    }
  }
}

TEST(BackwardPlan, OneRoundHasAllThatFits) {
  for (const std::int64_t rows : {131072, 524288}) {
    const BackwardPlan plan(backward_shapes(rows, 16, 16, 128, 7, 128), 1536 * kMiB);
    EXPECT_EQ(plan.round_rows, rows);
    EXPECT_EQ(plan.round_kv_heads, 16);
    EXPECT_LE(plan.chunks, 4);
  }
  EXPECT_EQ(BackwardPlan(backward_shapes(8192, 16, 16, 128, 2, 512), 1536 * kMiB).chunks, 1);
}

/// Rounds of few rows bring the keys and the sums of dk and dv for little work.
TEST(BackwardPlan, RoundsOfLargeBlocksHaveManyRows) {
  for (const std::int64_t rows : {131072, 524288, 1048576}) {
    EXPECT_GE(BackwardPlan(backward_shapes(rows, 16, 16, 128, 11, 4096), 1536 * kMiB).round_rows, 49152) << rows;
  }
}

}  // namespace
}  // namespace moba::cuda
