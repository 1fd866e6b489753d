// The context of attend_cpu: threads that wait between calls, and a count of the scratch that is held.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#include "moba/moba.h"

/// Contiguous shares of the tasks, one a thread. A thread that waits looks `spins` times before it sleeps: many times
/// where calls are short, few where its processor time is not to count.
class ThreadContext : public moba::SerialContext {
 public:
  ThreadContext(int threads, int spins) : threads_(threads), spins_(spins) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  }
  ~ThreadContext() override {
    task_ = nullptr;
    start();
    for (std::thread& worker : workers_) worker.join();
  }

  int num_threads() const override { return threads_; }

  void parallel_for(std::int64_t count, std::int64_t grain, moba::RangeTask task) override {
    const std::int64_t share = (count + threads_ - 1) / threads_;
    count_ = count;
    step_ = std::max(grain, (share + grain - 1) / grain * grain);
    if (count <= step_) {
      if (count > 0) task(0, count);
      return;
    }
    task_ = &task;
    left_.store(threads_ - 1);
    start();
    run_share(0);
    for (int left = left_.load(); left > 0; left = left_.load()) wait(left_, left);
  }

  void* allocate(std::size_t bytes) override {
    char* memory = static_cast<char*>(SerialContext::allocate(bytes + kHeader));
    if (memory == nullptr) return nullptr;
    *reinterpret_cast<std::size_t*>(memory) = bytes;
    const std::size_t held = held_.fetch_add(bytes) + bytes;
    std::size_t peak = peak_.load();
    while (held > peak && !peak_.compare_exchange_weak(peak, held)) {
    }
    return memory + kHeader;
  }
  void release(void* pointer) noexcept override {
    if (pointer == nullptr) return;
    char* memory = static_cast<char*>(pointer) - kHeader;
    held_ -= *reinterpret_cast<std::size_t*>(memory);
    SerialContext::release(memory);
  }
  /// The most scratch, in bytes, that was held at one time.
  std::size_t peak() const { return peak_; }

 private:
  static constexpr std::size_t kHeader = 64;

  /// Returns once the number is another.
  template <class Number>
  void wait(const std::atomic<Number>& number, Number seen) const {
    for (int i = 0; i < spins_; ++i) {
      if (number.load() != seen) return;
    }
    number.wait(seen);
  }

  void start() {
    turn_.fetch_add(1);
    turn_.notify_all();
  }

  void run_share(std::int64_t index) const {
    const std::int64_t begin = index * step_;
    if (begin < count_) (*task_)(begin, std::min(count_, begin + step_));
  }

  void work(std::int64_t index) {
    for (unsigned seen = 0;; ++seen) {
      wait(turn_, seen);
      if (task_ == nullptr) return;
      run_share(index);
      left_.fetch_sub(1);
      left_.notify_one();
    }
  }

  int threads_, spins_;
  std::atomic<unsigned> turn_ = 0;
  std::atomic<int> left_ = 0;
  const moba::RangeTask* task_ = nullptr;
  std::int64_t count_ = 0, step_ = 1;
  std::atomic<std::size_t> held_ = 0, peak_ = 0;
  std::vector<std::thread> workers_;  // last: they use all the others
};
