// One line on standard error that says how far a long piece of work has come.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace moba::app {

/// Silent when standard error is not a terminal and during the first two seconds. The line is wiped when the object
/// goes, so that what follows stands on a clean line.
class Progress {
 public:
  Progress();
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` of `total` of whatever `what` names ("reading 16384 tokens, moba").
  void show(std::string_view what, std::int64_t done, std::int64_t total);
  /// Work whose length is not known.
  void show(std::string_view what);
  /// Wipes the line before something else is printed to the terminal.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  bool due();
  void draw(const std::string& line);

  bool terminal_;
  bool drawn_ = false;
  Clock::time_point started_;
  Clock::time_point last_drawn_;
};

}  // namespace moba::app
