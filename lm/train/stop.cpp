#include "lm/train/stop.h"

#include <unistd.h>

#include <chrono>
#include <fstream>
#include <string>

namespace moba::lm {
namespace {

volatile std::sig_atomic_t signal_seen = 0;

extern "C" void note_signal(int) {
  signal_seen = 1;
}

// Seconds between the start of this process and the first call, from /proc; 0 where that cannot be read.
double seconds_before_first_call() {
  std::ifstream stat("/proc/self/stat"), uptime("/proc/uptime");
  std::string text((std::istreambuf_iterator<char>(stat)), std::istreambuf_iterator<char>());
  double up = 0;
  const std::size_t name_end = text.rfind(')');  // the program's name may hold spaces
  if (name_end == std::string::npos || !(uptime >> up)) return 0;
  std::size_t at = name_end + 1;
  constexpr int kStartTimeField = 22, kFirstFieldBehindName = 3;  // proc(5)
  for (int field = kFirstFieldBehindName; field <= kStartTimeField && at != std::string::npos; ++field)
    at = text.find(' ', at + (field > kFirstFieldBehindName));
  if (at == std::string::npos) return 0;
  const double started = std::strtod(text.c_str() + at, nullptr) / static_cast<double>(::sysconf(_SC_CLK_TCK));
  return up > started ? up - started : 0;
}

}  // namespace

SignalWatch::SignalWatch() {
  signal_seen = 0;
  struct sigaction action {};
  action.sa_handler = note_signal;
  action.sa_flags = SA_RESETHAND | SA_RESTART;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, &old_interrupt_);
  ::sigaction(SIGTERM, &action, &old_terminate_);
}

SignalWatch::~SignalWatch() {
  ::sigaction(SIGINT, &old_interrupt_, nullptr);
  ::sigaction(SIGTERM, &old_terminate_, nullptr);
}

bool SignalWatch::stop_asked() const {
  return signal_seen != 0;
}

double process_seconds() {
  using Clock = std::chrono::steady_clock;
  static const Clock::time_point first_call = Clock::now();
  static const double before = seconds_before_first_call();
  return before + std::chrono::duration<double>(Clock::now() - first_call).count();
}

}  // namespace moba::lm
