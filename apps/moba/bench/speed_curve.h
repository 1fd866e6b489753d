// Time over length as a picture: how attention grows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moba::app {

/// One measured length of a problem; `panel` names all else of it. Milliseconds; portable_ms is 0 where not timed.
struct CurvePoint {
  std::string panel;
  std::int64_t n = 0;
  double ms = 0, dense_ms = 0, portable_ms = 0;
};

/// One panel for each problem with at least two lengths, both axes logarithmic: ours, dense attention and, where it was
/// timed, the portable backend. A whole SVG file; empty text where no problem has two lengths.
std::string speed_curve_svg(const std::vector<CurvePoint>& points, const std::string& machine);

}  // namespace moba::app
