// The needle result as one picture: heat maps beside each other, the speed curve below.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>

#include <fmt/format.h>

#include "report/canvas.h"
#include "report/needle_report.h"
#include "report/speed_axes.h"

namespace moba::app {
namespace {

constexpr Rgb kBack{251, 251, 249}, kCard{255, 255, 255}, kInk{25, 28, 32}, kSoft{93, 101, 112}, kLine{227, 228, 223};
constexpr int kMargin = 48, kWidth = 1400;
constexpr double kRowHeight = 52, kCurveHeight = 460;

Rgb series_colour(const std::string& attention) {
  if (attention == "full") return {194, 98, 27};
  if (attention == "moba") return {12, 124, 134};
  return {106, 79, 179};
}

void draw_card(Canvas& canvas, double x, double y, double width, double height) {
  canvas.box(x, y, width, height, 18, kLine);
  canvas.box(x + 1.5, y + 1.5, width - 3, height - 3, 16.5, kCard);
}

void draw_heat_map(Canvas& canvas, const NeedleReport& report, const std::string& attention, double x, double y,
                   double width, double height) {
  draw_card(canvas, x, y, width, height);
  std::int64_t trials = 0, correct = 0;
  for (const LengthSummary& row : summarize(report, attention)) {
    trials += row.trials;
    correct += row.correct;
  }
  canvas.line(x + 32, y + 37, x + 32, y + 37, 15, series_colour(attention));
  canvas.text(x + 50, y + 44, 16, Align::kLeft, kInk,
              fmt::format("{} attention: {} of {} found", attention, correct, trials));

  const double left = x + 92, top = y + 72;
  const auto columns = static_cast<double>(report.options.lengths.size());
  const double cell = std::min(150.0, (width - 92 - 24) / columns);
  for (const lm::NeedleResult& result : report.results) {
    if (result.attention != attention) continue;
    const auto column =
        static_cast<double>(std::find(report.options.lengths.begin(), report.options.lengths.end(), result.length) -
                            report.options.lengths.begin());
    const double row =
        report.options.depths == 1 ? 0 : std::round(result.depth * static_cast<double>(report.options.depths - 1));
    const Rgb colour = share_colour(static_cast<double>(result.correct) / static_cast<double>(result.trials));
    const double cell_x = left + column * cell, cell_y = top + row * kRowHeight;
    canvas.box(cell_x, cell_y, cell - 4, kRowHeight - 4, 8, colour);
    canvas.text(cell_x + (cell - 4) / 2, cell_y + kRowHeight / 2 + 5, 15, Align::kMiddle,
                wants_white_text(colour) ? Rgb{255, 255, 255} : kInk,
                fmt::format("{}/{}", result.correct, result.trials));
  }
  for (std::int64_t depth = 0; depth < report.options.depths; ++depth) {
    canvas.text(left - 14, top + (static_cast<double>(depth) + 0.5) * kRowHeight + 4, 13, Align::kRight, kSoft,
                fmt::format("{:.0f}%", 100 * lm::needle_depth(depth, report.options.depths)));
  }
  const double bottom = top + static_cast<double>(report.options.depths) * kRowHeight;
  for (std::size_t column = 0; column < report.options.lengths.size(); ++column) {
    const double middle = left + (static_cast<double>(column) + 0.5) * cell - 2;
    canvas.text(middle, bottom + 24, 13, Align::kMiddle, kSoft, short_length(report.options.lengths[column]));
    if (was_read(report, attention, report.options.lengths[column])) continue;
    canvas.text(middle, (top + bottom) / 2 + 5, 13, Align::kMiddle, kSoft, "not run");
  }
  canvas.text(left - 14, bottom + 24, 13, Align::kRight, kSoft, "depth");
}

void draw_curve(Canvas& canvas, const NeedleReport& report, double x, double y, double width) {
  draw_card(canvas, x, y, width, kCurveHeight);
  canvas.text(x + 32, y + 44, 16, Align::kLeft, kInk, "time to read the prompt, by its length in tokens");
  const SpeedAxes axes = make_speed_axes(report, x + 100, y + 72, width - 100 - 130, kCurveHeight - 72 - 62);
  const double right = axes.left + axes.width;
  for (double tick : axes.second_ticks()) {
    canvas.line(axes.left, axes.y(tick), right, axes.y(tick), 1.2, kLine);
    canvas.text(axes.left - 14, axes.y(tick) + 5, 13, Align::kRight, kSoft,
                tick < 1 ? fmt::format("{:g} ms", tick * 1000) : fmt::format("{:g} s", tick));
  }
  for (std::int64_t length : report.options.lengths) {
    canvas.text(axes.x(static_cast<double>(length)), axes.top + axes.height + 30, 13, Align::kMiddle, kSoft,
                short_length(length));
  }
  for (const std::string& attention : report.attentions) {
    std::vector<LengthSummary> rows = summarize(report, attention);
    std::sort(rows.begin(), rows.end(),
              [](const LengthSummary& a, const LengthSummary& b) { return a.length < b.length; });
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const double at_x = axes.x(static_cast<double>(rows[i].length)), at_y = axes.y(rows[i].seconds);
      canvas.line(at_x, at_y, at_x, at_y, 12, series_colour(attention));
      if (i == 0) continue;
      canvas.line(axes.x(static_cast<double>(rows[i - 1].length)), axes.y(rows[i - 1].seconds), at_x, at_y, 4,
                  series_colour(attention));
    }
    canvas.text(axes.x(static_cast<double>(rows.back().length)) + 18, axes.y(rows.back().seconds) + 6, 15, Align::kLeft,
                series_colour(attention), attention);
  }
  const auto compared = compared_attention(report);
  if (!compared) return;
  for (const LengthSummary& row : summarize(report, *compared)) {
    const std::optional<double> ratio = speed_up(report, *compared, row.length);
    if (!ratio) continue;
    const double lower = std::max(axes.y(row.seconds), axes.y(row.seconds * *ratio));
    canvas.text(axes.x(static_cast<double>(row.length)), lower + 32, 16, Align::kMiddle, kInk,
                fmt::format("{:.1f}x", *ratio));
  }
}

}  // namespace

std::string needle_png(const NeedleReport& report) {
  const std::int64_t longest = *std::max_element(report.options.lengths.begin(), report.options.lengths.end());
  const double map_height = 72 + static_cast<double>(report.options.depths) * kRowHeight + 44;
  const double maps_top = 128, curve_top = maps_top + map_height + 22;
  const int height = static_cast<int>(curve_top + kCurveHeight) + 62;
  Canvas canvas(kWidth, height, kBack);
  canvas.text(kMargin, 70, 28, Align::kLeft, kInk, fmt::format("Needles in {} tokens of text", with_commas(longest)));
  std::string model = std::filesystem::path(report.model).filename().string();
  canvas.text(kMargin, 104, 14, Align::kLeft, kSoft,
              fmt::format("{}: facts hidden in real text, {} look-alikes each, exact answers", model,
                          report.options.distractors));

  const auto maps = static_cast<double>(report.attentions.size());
  const double map_width = (kWidth - 2 * kMargin - (maps - 1) * 22) / maps;
  for (std::size_t i = 0; i < report.attentions.size(); ++i) {
    draw_heat_map(canvas, report, report.attentions[i], kMargin + static_cast<double>(i) * (map_width + 22), maps_top,
                  map_width, map_height);
  }
  draw_curve(canvas, report, kMargin, curve_top, kWidth - 2 * kMargin);
  canvas.text(kMargin, height - 26, 12, Align::kLeft, kSoft, fmt::format("{}; {}", report.machine, report.date));
  return canvas.png();
}

}  // namespace moba::app
