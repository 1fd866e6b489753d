// The axes of the speed curve, shared by the page and the picture.
#pragma once

#include <vector>

#include "report/needle_report.h"

namespace moba::app {

/// Maps a length and a time to a box, both logarithmically, with some air around the data.
struct SpeedAxes {
  double left = 0, top = 0, width = 0, height = 0;  // of the box
  double low_length = 1, high_length = 2;
  double low_seconds = 1, high_seconds = 10;

  double x(double length) const;
  double y(double seconds) const;
  /// 1, 2 and 5 times the powers of ten within the axis; fewer where they would stand too close.
  std::vector<double> second_ticks() const;
};

SpeedAxes make_speed_axes(const NeedleReport& report, double left, double top, double width, double height);

}  // namespace moba::app
