// Batches made ahead of time by background threads and handed out in order.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "lm/data/batch.h"

namespace moba::lm {

class Prefetcher {
 public:
  using Make = std::function<StepBatch(std::int64_t step)>;

  /// Makes steps first … last - 1 on `threads` threads, at most `ahead` of them not yet taken.
  Prefetcher(Make make, std::int64_t first, std::int64_t last, std::int64_t threads, std::int64_t ahead);
  /// Waits for the batches being made.
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// The next step's batch, whatever thread made it; throws what its making threw. Not beyond the last.
  StepBatch next();

 private:
  void work();

  Make make_;
  std::int64_t claimed_, taken_, last_, ahead_;
  bool stop_ = false;
  std::map<std::int64_t, StepBatch> ready_;
  std::map<std::int64_t, std::exception_ptr> failed_;
  std::mutex mutex_;
  std::condition_variable room_, arrived_;
  std::vector<std::thread> threads_;
};

}  // namespace moba::lm
