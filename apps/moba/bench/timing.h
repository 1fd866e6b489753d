// Wall times of work, as medians: short calls are disturbed by whatever else the machine does.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

namespace moba::app {

/// Of at least one value.
inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// The median of `calls` >= 1 of work(0), work(1), …, in milliseconds.
template <class Work>
double milliseconds(int calls, const Work& work) {
  std::vector<double> times;
  for (int i = 0; i < calls; ++i) {
    const auto started = std::chrono::steady_clock::now();
    work(i);
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - started).count());
  }
  return median(times);
}

/// Milliseconds of one of `calls` >= 1 calls of work(i) that are issued one behind the other, then waited for: how a
/// device that runs behind the host is used.
template <class Work, class Wait>
double queued_milliseconds(int calls, const Work& work, const Wait& wait) {
  return milliseconds(1,
                      [&](int) {
                        for (int i = 0; i < calls; ++i) work(i);
                        wait();
                      }) /
         calls;
}

/// Milliseconds of a call. On a CPU the median of calls; on a GPU, which runs behind the host, the mean of calls that
/// do not wait for each other.
template <class Work, class Wait>
double device_milliseconds(bool is_cuda, int calls, const Work& work, const Wait& wait) {
  return is_cuda ? queued_milliseconds(calls, work, wait) : milliseconds(calls, work);
}

}  // namespace moba::app
