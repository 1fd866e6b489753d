#include "bench/speed_curve.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "bench/svg_style.h"
#include "report/svg_charts.h"

namespace moba::app {
namespace {

constexpr double kPanelWidth = 490, kPanelHeight = 300;
constexpr double kLeft = 76, kRight = 146, kTop = 34, kBottom = 40;

struct Panel {
  std::string name;
  std::vector<CurvePoint> points;  // by length
};

std::vector<Panel> panels_of(const std::vector<CurvePoint>& points) {
  std::vector<Panel> panels;
  for (const CurvePoint& point : points) {
    auto panel = std::find_if(panels.begin(), panels.end(), [&](const Panel& p) { return p.name == point.panel; });
    if (panel == panels.end()) panel = panels.insert(panels.end(), {point.panel, {}});
    panel->points.push_back(point);
  }
  std::erase_if(panels, [](const Panel& panel) { return panel.points.size() < 2; });
  for (Panel& panel : panels) {
    std::stable_sort(panel.points.begin(), panel.points.end(),
                     [](const CurvePoint& a, const CurvePoint& b) { return a.n < b.n; });
  }
  return panels;
}

struct Series {
  const char* name;
  const char* css_class;
  double CurvePoint::*ms;
};
constexpr Series kSeries[] = {{"dense (torch)", "dense", &CurvePoint::dense_ms},
                              {"portable", "portable", &CurvePoint::portable_ms},
                              {"libmoba", "ours", &CurvePoint::ms}};

std::string length_text(std::int64_t n) {
  return n % 1024 == 0 ? fmt::format("{}K", n / 1024) : std::to_string(n);
}

class PanelPicture {
 public:
  PanelPicture(const Panel& panel, double left, double top) : panel_(panel), left_(left + kLeft), top_(top + kTop) {
    first_ = std::log2(static_cast<double>(panel.points.front().n));
    last_ = std::max(std::log2(static_cast<double>(panel.points.back().n)), first_ + 1e-6);
    for (const Series& series : kSeries) {
      for (const CurvePoint& point : panel.points) {
        if (point.*series.ms <= 0) continue;
        least_ = std::min(least_, std::log10(point.*series.ms));
        most_ = std::max(most_, std::log10(point.*series.ms));
      }
    }
    least_ = std::floor(least_);
    most_ = std::max(std::ceil(most_), least_ + 1);
  }

  std::string draw() const {
    std::string body =
        fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", left_, top_ - 14, escape_html(panel_.name));
    for (double decade = least_; decade <= most_; ++decade) {
      const double height = y(std::pow(10, decade));
      body += fmt::format(
          "<line x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\" class=\"grid\"/>"
          "<text x=\"{3:.1f}\" y=\"{4:.1f}\" class=\"soft end\">{5:g} ms</text>\n",
          left_, left_ + kWidth, height, left_ - 6, height + 4, std::pow(10, decade));
    }
    for (const CurvePoint& point : panel_.points) {
      body += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"soft middle\">{}</text>\n", x(point.n),
                          top_ + kHeight + 18, length_text(point.n));
    }
    std::vector<Label> labels;
    for (const Series& series : kSeries) body += line(series, labels);
    std::sort(labels.begin(), labels.end(), [](const Label& a, const Label& b) { return a.y < b.y; });
    double lowest = 0;
    for (const Label& label : labels) {
      lowest = std::max(label.y, lowest + kLabelHeight);
      body += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", left_ + kWidth + 8, lowest, label.text);
    }
    return body;
  }

 private:
  /// Beside a line's last point, or below a neighbour's that lies too near.
  struct Label {
    double y;
    std::string text;
  };
  static constexpr double kLabelHeight = 16;
  static constexpr double kWidth = kPanelWidth - kLeft - kRight, kHeight = kPanelHeight - kTop - kBottom;

  double x(std::int64_t n) const {
    return left_ + kWidth * (std::log2(static_cast<double>(n)) - first_) / (last_ - first_);
  }
  double y(double ms) const { return top_ + kHeight * (most_ - std::log10(ms)) / (most_ - least_); }

  std::string line(const Series& series, std::vector<Label>& labels) const {
    std::string path, marks;
    const CurvePoint* last = nullptr;
    for (const CurvePoint& point : panel_.points) {
      if (point.*series.ms <= 0) continue;
      path += fmt::format("{}{:.1f} {:.1f}", last == nullptr ? "M" : "L", x(point.n), y(point.*series.ms));
      marks += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" class=\"{}\"/>", x(point.n),
                           y(point.*series.ms), series.css_class);
      last = &point;
    }
    if (last == nullptr) return "";
    std::string label = series.name;
    if (series.ms != &CurvePoint::ms) label += fmt::format(" {:.1f}×", last->*series.ms / last->ms);
    labels.push_back({y(last->*series.ms) + 4, label});
    return fmt::format("<path d=\"{}\" class=\"line {}\"/>{}\n", path, series.css_class, marks);
  }

  const Panel& panel_;
  double left_, top_, first_ = 0, last_ = 0;
  double least_ = 1e9, most_ = -1e9;  // powers of ten
};

}  // namespace

std::string speed_curve_svg(const std::vector<CurvePoint>& points, const std::string& machine) {
  const std::vector<Panel> panels = panels_of(points);
  if (panels.empty()) return "";
  const std::size_t columns = std::min<std::size_t>(panels.size(), 2), rows = (panels.size() + columns - 1) / columns;
  const double width = kPanelWidth * static_cast<double>(columns);
  const double height = kPanelHeight * static_cast<double>(rows) + 34;
  std::string body;
  for (std::size_t i = 0; i < panels.size(); ++i) {
    body += PanelPicture(panels[i], kPanelWidth * static_cast<double>(i % columns),
                         kPanelHeight * static_cast<double>(i / columns) + 10)
                .draw();
  }
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" role=\"img\">\n"
      "<title>Time of attention over length</title>\n<style>{2}</style>\n"
      "<rect width=\"{0:.0f}\" height=\"{1:.0f}\" rx=\"8\" class=\"back\"/>\n{3}"
      "<text x=\"10\" y=\"{4:.0f}\" class=\"soft\">{5}</text>\n</svg>\n",
      width, height, kBenchStyle, body, height - 10, escape_html(machine));
}

}  // namespace moba::app
