#include "core/support.h"

#include <algorithm>
#include <cstring>

namespace moba::test {

void TestContext::parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) {
  if (count <= 0) return;
  grain = std::max<std::int64_t>(grain, 1);
  if (threads_ == 1) return task(0, count);
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  const auto work = [&] {
    for (std::int64_t begin = next.fetch_add(grain); begin < count; begin = next.fetch_add(grain)) {
      try {
        task(begin, std::min(begin + grain, count));
      } catch (...) {
        const std::lock_guard lock(mutex_);
        error = std::current_exception();
      }
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < threads_; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

void* TestContext::allocate(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (fail_from >= 0 && allocations_ >= fail_from) return nullptr;
  ++allocations_;
  void* pointer = ::operator new (std::max<std::size_t>(bytes, 1), std::align_val_t{64});
  std::memset(pointer, 0xff, bytes);
  sizes_[pointer] = static_cast<std::int64_t>(bytes);
  held_ += static_cast<std::int64_t>(bytes);
  peak_ = std::max(peak_, held_);
  return pointer;
}

void TestContext::release(void* pointer) noexcept {
  const std::lock_guard lock(mutex_);
  held_ -= sizes_[pointer];
  sizes_.erase(pointer);
  ::operator delete (pointer, std::align_val_t{64});
}

}  // namespace moba::test
