// Colours shared by the page and the picture.
#pragma once

namespace moba::app {

struct Rgb {
  int red = 0, green = 0, blue = 0;
};

/// The colour of a share of right answers: vermilion at 0, yellow at one half, teal at 1.
Rgb share_colour(double share);
/// Whether white (rather than black) is read better on that colour.
bool wants_white_text(const Rgb& colour);

}  // namespace moba::app
