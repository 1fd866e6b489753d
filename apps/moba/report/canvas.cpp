#include "report/canvas.h"

#include <png.h>

#include <algorithm>
#include <cmath>

#include "moba/error.h"
#include "report/stroke_font.h"

namespace moba::app {

Canvas::Canvas(int width, int height, Rgb background)
    : width_(width), height_(height), pixels_(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3) {
  box(0, 0, width, height, 0, background);
}

/// `distance(x, y)` is negative inside the shape; a pixel is covered by as much as its centre lies inside, so that
/// edges are smooth.
template <class Distance>
void Canvas::paint(double left, double top, double right, double bottom, Rgb colour, Distance distance) {
  const int x_begin = std::max(0, static_cast<int>(std::floor(left - 1)));
  const int x_end = std::min(width_, static_cast<int>(std::ceil(right + 1)));
  const int y_begin = std::max(0, static_cast<int>(std::floor(top - 1)));
  const int y_end = std::min(height_, static_cast<int>(std::ceil(bottom + 1)));
  const int channels[] = {colour.red, colour.green, colour.blue};
  for (int y = y_begin; y < y_end; ++y) {
    for (int x = x_begin; x < x_end; ++x) {
      const double cover = std::clamp(0.5 - distance(x + 0.5, y + 0.5), 0.0, 1.0);
      if (cover == 0) continue;
      std::uint8_t* pixel =
          &pixels_[(static_cast<std::size_t>(y) * static_cast<std::size_t>(width_) + static_cast<std::size_t>(x)) * 3];
      for (int c = 0; c < 3; ++c) {
        pixel[c] = static_cast<std::uint8_t>(std::lround(pixel[c] + (channels[c] - pixel[c]) * cover));
      }
    }
  }
}

void Canvas::box(double x, double y, double width, double height, double radius, Rgb colour) {
  const double centre_x = x + width / 2, centre_y = y + height / 2;
  paint(x, y, x + width, y + height, colour, [&](double px, double py) {
    const double dx = std::abs(px - centre_x) - width / 2 + radius;
    const double dy = std::abs(py - centre_y) - height / 2 + radius;
    return std::hypot(std::max(dx, 0.0), std::max(dy, 0.0)) + std::min(std::max(dx, dy), 0.0) - radius;
  });
}

void Canvas::line(double x0, double y0, double x1, double y1, double thickness, Rgb colour) {
  const double reach = thickness / 2;
  const double dx = x1 - x0, dy = y1 - y0;
  const double square = dx * dx + dy * dy;
  paint(std::min(x0, x1) - reach, std::min(y0, y1) - reach, std::max(x0, x1) + reach, std::max(y0, y1) + reach, colour,
        [&](double px, double py) {
          const double along = square > 0 ? std::clamp(((px - x0) * dx + (py - y0) * dy) / square, 0.0, 1.0) : 0.0;
          return std::hypot(px - x0 - along * dx, py - y0 - along * dy) - reach;
        });
}

double Canvas::text_width(double size, std::string_view text) {
  double units = 0;
  for (char c : text) units += c == ' ' ? kSpaceUnits : glyph_of(c).width + kGapUnits;
  return (units - kGapUnits) * size / kCapitalUnits;
}

void Canvas::text(double x, double y, double size, Align align, Rgb colour, std::string_view text) {
  const double unit = size / kCapitalUnits;
  const double thickness = std::max(1.4, 0.135 * size);
  if (align == Align::kMiddle) x -= text_width(size, text) / 2;
  if (align == Align::kRight) x -= text_width(size, text);
  for (char c : text) {
    if (c == ' ') {
      x += kSpaceUnits * unit;
      continue;
    }
    const Glyph& glyph = glyph_of(c);
    double last_x = 0, last_y = 0;
    bool pen_down = false;
    for (std::size_t i = 0; i < glyph.strokes.size(); ++i) {
      if (glyph.strokes[i] == ' ') {
        pen_down = false;
        continue;
      }
      const double at_x = x + (glyph.strokes[i] - '0') * unit;
      const double at_y = y - (glyph.strokes[i + 1] - 'd') * unit;
      ++i;
      if (pen_down) line(last_x, last_y, at_x, at_y, thickness, colour);
      last_x = at_x;
      last_y = at_y;
      pen_down = true;
    }
    x += (glyph.width + kGapUnits) * unit;
  }
}

std::string Canvas::png() const {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(width_);
  image.height = static_cast<png_uint_32>(height_);
  image.format = PNG_FORMAT_RGB;
  png_alloc_size_t bytes = PNG_IMAGE_PNG_SIZE_MAX(image);
  std::string file(bytes, '\0');
  // libpng releases what it holds in `image` itself, also when it fails.
  if (png_image_write_to_memory(&image, file.data(), &bytes, 0, pixels_.data(), 0, nullptr) == 0) {
    throw Error(ErrorCode::kUnsupported, std::string("libpng: ") + image.message);
  }
  file.resize(bytes);
  return file;
}

}  // namespace moba::app
