// A picture in memory: smooth lines, rounded boxes and text, written as PNG.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "report/colour.h"

namespace moba::app {

enum class Align { kLeft, kMiddle, kRight };

class Canvas {
 public:
  Canvas(int width, int height, Rgb background);

  int width() const { return width_; }
  int height() const { return height_; }

  void box(double x, double y, double width, double height, double radius, Rgb colour);
  /// Round ends; a line of no length is a dot.
  void line(double x0, double y0, double x1, double y1, double thickness, Rgb colour);
  /// Strokes of a plotter font; `size` is the height of a capital, y the base line. Other than printable ASCII is a
  /// box.
  void text(double x, double y, double size, Align align, Rgb colour, std::string_view text);
  static double text_width(double size, std::string_view text);

  /// The bytes of a PNG file.
  std::string png() const;

 private:
  template <class Distance>
  void paint(double left, double top, double right, double bottom, Rgb colour, Distance distance);

  int width_, height_;
  std::vector<std::uint8_t> pixels_;  // [height, width, 3]
};

}  // namespace moba::app
