// at::parallel_for and torch's allocator, as the core sees them.
#include "core.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

namespace moba::torch_ops {
namespace {

TEST(TorchContext, RangesCoverTheCountOnceInWholeGrains) {
  TorchContext context;
  for (int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    EXPECT_EQ(context.num_threads(), threads);
    for (std::int64_t count : {0, 1, 7, 64, 1001}) {
      for (std::int64_t grain : {1, 8, 5000}) {
        std::vector<std::atomic<int>> visits(static_cast<std::size_t>(count));
        context.parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end) {
          EXPECT_EQ(begin % grain, 0);
          EXPECT_TRUE(end == count || end % grain == 0);
          for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
        });
        for (const auto& visit : visits) EXPECT_EQ(visit, 1);
      }
    }
  }
  at::set_num_threads(1);
}

TEST(TorchContext, ExceptionsReachTheCaller) {
  TorchContext context;
  at::set_num_threads(2);
  EXPECT_THROW(context.parallel_for(100, 1,
                                    [](std::int64_t begin, std::int64_t end) {
                                      if (begin <= 50 && 50 < end) throw std::runtime_error("stop");
                                    }),
               std::runtime_error);
  at::set_num_threads(1);
}

TEST(TorchContext, MemoryIsAligned) {
  TorchContext context;
  for (std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{1000}, std::size_t{1} << 20}) {
    void* memory = context.allocate(bytes);
    ASSERT_NE(memory, nullptr);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % 64, 0U);
    context.release(memory);
  }
  EXPECT_EQ(context.allocate(std::size_t{1} << 60), nullptr);
}

}  // namespace
}  // namespace moba::torch_ops
