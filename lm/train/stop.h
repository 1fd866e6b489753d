// Reasons to stop a run between two steps: a signal, or its time.
#pragma once

#include <csignal>
#include <optional>

namespace moba::lm {

/// While it lives, SIGINT and SIGTERM only set a flag. A second one of them ends the program as it always would.
class SignalWatch {
 public:
  SignalWatch();
  ~SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

  bool stop_asked() const;

 private:
  struct sigaction old_interrupt_ {
  }, old_terminate_{};
};

/// Seconds since this process started, its loading included.
double process_seconds();

/// The time a run may take, counted from the start of the process.
class TimeBudget {
 public:
  explicit TimeBudget(std::optional<double> minutes) : minutes_(minutes) {}

  /// True when `reserve` more seconds (the steps in flight, writing the checkpoint) would not fit.
  bool spent(double reserve) const { return minutes_ && process_seconds() + reserve >= *minutes_ * 60; }

 private:
  std::optional<double> minutes_;
};

}  // namespace moba::lm
