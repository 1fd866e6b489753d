#include "report/colour.h"

namespace moba::app {
namespace {

Rgb mix(const Rgb& a, const Rgb& b, double share) {
  const auto channel = [share](int from, int to) { return static_cast<int>(from + (to - from) * share + 0.5); };
  return {channel(a.red, b.red), channel(a.green, b.green), channel(a.blue, b.blue)};
}

}  // namespace

Rgb share_colour(double share) {
  constexpr Rgb kNone{203, 75, 79}, kHalf{240, 190, 84}, kAll{31, 145, 125};
  return share < 0.5 ? mix(kNone, kHalf, 2 * share) : mix(kHalf, kAll, 2 * share - 1);
}

bool wants_white_text(const Rgb& colour) {
  return 0.299 * colour.red + 0.587 * colour.green + 0.114 * colour.blue < 140;
}

}  // namespace moba::app
