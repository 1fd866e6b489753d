#include "report/speed_axes.h"

#include <algorithm>
#include <cmath>

namespace moba::app {
namespace {

double share_of_log(double value, double low, double high) {
  return std::log(value / low) / std::log(high / low);
}

}  // namespace

double SpeedAxes::x(double length) const {
  return left + width * share_of_log(length, low_length, high_length);
}

double SpeedAxes::y(double seconds) const {
  return top + height * (1 - share_of_log(std::max(seconds, low_seconds), low_seconds, high_seconds));
}

std::vector<double> SpeedAxes::second_ticks() const {
  const bool wide = high_seconds / low_seconds > 300;  // more than two and a half decades: powers of ten alone
  std::vector<double> ticks;
  for (double decade = std::pow(10, std::floor(std::log10(low_seconds))); decade <= high_seconds; decade *= 10) {
    for (double step : {1.0, 2.0, 5.0}) {
      const double tick = decade * step;
      if ((step == 1 || !wide) && tick >= low_seconds && tick <= high_seconds) ticks.push_back(tick);
    }
  }
  return ticks;
}

SpeedAxes make_speed_axes(const NeedleReport& report, double left, double top, double width, double height) {
  SpeedAxes axes{.left = left, .top = top, .width = width, .height = height};
  double low = INFINITY, high = 0;
  for (const std::string& attention : report.attentions) {
    for (const LengthSummary& row : summarize(report, attention)) {
      low = std::min(low, row.seconds);
      high = std::max(high, row.seconds);
    }
  }
  low = std::max(low, 1e-6);
  high = std::max(high, low);
  axes.low_seconds = low / 1.6;
  axes.high_seconds = high * 1.6;
  const auto [shortest, longest] = std::minmax_element(report.options.lengths.begin(), report.options.lengths.end());
  axes.low_length = static_cast<double>(*shortest) / 1.25;
  axes.high_length = static_cast<double>(*longest) * 1.25;
  return axes;
}

}  // namespace moba::app
