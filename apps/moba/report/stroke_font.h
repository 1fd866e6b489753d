// Letters as pen strokes: smooth at any size, and a page of text instead of a font file.
#pragma once

#include <string_view>

namespace moba::app {

struct Glyph {
  char character;
  int width;
  /// Strokes separated by spaces; each is a row of points, a point is a digit (x) and a letter (y): 'd' is the base
  /// line, 'k' the top of small letters, 'n' that of capitals, 'a' the foot of descenders.
  std::string_view strokes;
};

/// Capitals are 10 units high.
inline constexpr double kCapitalUnits = 10;
inline constexpr double kSpaceUnits = 4.5;
inline constexpr double kGapUnits = 2.6;

/// The glyph of a character; an empty box for one that is not there.
const Glyph& glyph_of(char character);

}  // namespace moba::app
