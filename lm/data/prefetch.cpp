#include "lm/data/prefetch.h"

#include <utility>

namespace moba::lm {

Prefetcher::Prefetcher(Make make, std::int64_t first, std::int64_t last, std::int64_t threads, std::int64_t ahead)
    : make_(std::move(make)), claimed_(first), taken_(first), last_(last), ahead_(ahead) {
  for (std::int64_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

Prefetcher::~Prefetcher() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  room_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Prefetcher::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    room_.wait(lock, [this] { return stop_ || claimed_ >= last_ || claimed_ < taken_ + ahead_; });
    if (stop_ || claimed_ >= last_) return;
    const std::int64_t step = claimed_++;
    lock.unlock();
    StepBatch batch;
    std::exception_ptr error;
    try {
      batch = make_(step);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error) {
      failed_[step] = error;
    } else {
      ready_[step] = std::move(batch);
    }
    arrived_.notify_all();
  }
}

StepBatch Prefetcher::next() {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [this] { return ready_.count(taken_) || failed_.count(taken_); });
  if (failed_.count(taken_)) std::rethrow_exception(failed_[taken_]);
  StepBatch batch = std::move(ready_.extract(taken_).mapped());
  ++taken_;
  lock.unlock();
  room_.notify_all();
  return batch;
}

}  // namespace moba::lm
