// The cases that this project holds itself to, each with the ratio to torch's dense attention that it asks for.
#pragma once

#include <string>
#include <vector>

#include "bench/attend_problem.h"

namespace moba::app {

struct SpeedGoal {
  AttendCase problem;
  double at_least = 0, aim = 0;
  std::string simd_level;  // the limit of ours; empty for none
  std::string name() const;
  /// The same without the length: what the points of one curve have in common.
  std::string series() const;
};

std::vector<SpeedGoal> speed_goals();
/// The same for the native kernels of a Hopper GPU, against cuDNN.
std::vector<SpeedGoal> cuda_speed_goals();

/// One row of the picture: what was asked for and what was measured.
struct SpeedBar {
  std::string name;
  double at_least = 0, aim = 0, ratio = 0;
};

/// Bars on a logarithmic axis, a mark where each goal lies: a whole SVG file.
std::string speed_table_svg(const std::vector<SpeedBar>& bars, const std::string& machine);

}  // namespace moba::app
