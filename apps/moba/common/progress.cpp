#include "common/progress.h"

#include <unistd.h>

#include <algorithm>
#include <string>

#include <fmt/format.h>

#include "common/output.h"

namespace moba::app {
namespace {

constexpr std::chrono::seconds kQuiet{2};
constexpr std::chrono::milliseconds kInterval{200};

void write_terminal(std::string_view text) {
  // Progress is a courtesy: nothing follows from a terminal that does not take it.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

std::string minutes(double seconds) {
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  return whole < 60 ? fmt::format("{} s", whole) : fmt::format("{}:{:02} min", whole / 60, whole % 60);
}

}  // namespace

Progress::Progress() : terminal_(stderr_is_terminal()), started_(Clock::now()), last_drawn_(started_) {}

Progress::~Progress() {
  clear();
}

bool Progress::due() {
  if (!terminal_) return false;
  const Clock::time_point now = Clock::now();
  if (now - started_ < kQuiet || (drawn_ && now - last_drawn_ < kInterval)) return false;
  last_drawn_ = now;
  return true;
}

void Progress::draw(const std::string& line) {
  write_terminal("\r\x1b[K" + line);
  drawn_ = true;
}

void Progress::show(std::string_view what, std::int64_t done, std::int64_t total) {
  if (!due()) return;
  const double share = total > 0 ? std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0) : 0.0;
  const double elapsed = std::chrono::duration<double>(Clock::now() - started_).count();
  constexpr int kWidth = 24;
  const int filled = static_cast<int>(share * kWidth);
  std::string bar(static_cast<std::size_t>(filled), '#');
  bar.resize(kWidth, '.');
  draw(fmt::format("[{}] {:3.0f}%  {}  {} so far", bar, 100 * share, what, minutes(elapsed)));
}

void Progress::show(std::string_view what) {
  if (!due()) return;
  draw(fmt::format("{}  {} so far", what, minutes(std::chrono::duration<double>(Clock::now() - started_).count())));
}

void Progress::clear() {
  if (drawn_) write_terminal("\r\x1b[K");
  drawn_ = false;
}

}  // namespace moba::app
