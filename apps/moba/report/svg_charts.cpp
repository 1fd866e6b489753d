#include "report/svg_charts.h"

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "report/colour.h"
#include "report/speed_axes.h"

namespace moba::app {
namespace {

std::string css(const Rgb& colour) {
  return fmt::format("#{:02x}{:02x}{:02x}", colour.red, colour.green, colour.blue);
}

std::string text_at(double x, double y, const char* css_class, const std::string& content) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"{}\">{}</text>\n", x, y, css_class, escape_html(content));
}

/// "line-full", "line-moba", "line-model": the page colours them.
std::string series_class(const std::string& attention) {
  return "series-" + attention;
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string result;
  for (char c : text) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      default: result += c;
    }
  }
  return result;
}

std::string heat_map_svg(const NeedleReport& report, const std::string& attention) {
  constexpr double kCellWidth = 74, kCellHeight = 38, kGap = 3, kLeft = 62, kTop = 8;
  const auto columns = static_cast<double>(report.options.lengths.size());
  const auto rows = static_cast<double>(report.options.depths);
  const double width = kLeft + columns * kCellWidth + 4;
  const double height = kTop + rows * kCellHeight + 52;

  std::int64_t trials = 0, correct = 0;
  std::string cells;
  for (const lm::NeedleResult& result : report.results) {
    if (result.attention != attention) continue;
    const auto column = std::find(report.options.lengths.begin(), report.options.lengths.end(), result.length) -
                        report.options.lengths.begin();
    const double row = report.options.depths == 1 ? 0 : result.depth * (rows - 1);
    const double x = kLeft + static_cast<double>(column) * kCellWidth;
    const double y = kTop + row * kCellHeight;
    const double share = static_cast<double>(result.correct) / static_cast<double>(result.trials);
    const Rgb colour = share_colour(share);
    cells += fmt::format(
        "<g><title>{} tokens, depth {:.0f}%: {} of {} right</title>"
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{}\" height=\"{}\" rx=\"6\" fill=\"{}\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"cell {}\">{}/{}</text></g>\n",
        with_commas(result.length), 100 * result.depth, result.correct, result.trials, x, y, kCellWidth - kGap,
        kCellHeight - kGap, css(colour), x + (kCellWidth - kGap) / 2, y + (kCellHeight - kGap) / 2 + 5,
        wants_white_text(colour) ? "on-dark" : "on-light", result.correct, result.trials);
    trials += result.trials;
    correct += result.correct;
  }

  std::string empty;  // lengths that were not read with this attention
  for (std::size_t column = 0; column < report.options.lengths.size(); ++column) {
    if (was_read(report, attention, report.options.lengths[column])) continue;
    empty += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{}\" height=\"{:.1f}\" rx=\"6\" class=\"unread\"/>\n",
                         kLeft + static_cast<double>(column) * kCellWidth, kTop, kCellWidth - kGap,
                         rows * kCellHeight - kGap);
    empty += text_at(kLeft + (static_cast<double>(column) + 0.5) * kCellWidth - kGap / 2,
                     kTop + rows * kCellHeight / 2 + 3, "tick middle", "not run");
  }

  std::string labels;
  for (std::int64_t depth = 0; depth < report.options.depths; ++depth) {
    labels += text_at(kLeft - 10, kTop + (static_cast<double>(depth) + 0.5) * kCellHeight + 3, "tick end",
                      fmt::format("{:.0f}%", 100 * lm::needle_depth(depth, report.options.depths)));
  }
  for (std::size_t column = 0; column < report.options.lengths.size(); ++column) {
    labels += text_at(kLeft + (static_cast<double>(column) + 0.5) * kCellWidth - kGap / 2,
                      kTop + rows * kCellHeight + 18, "tick middle", short_length(report.options.lengths[column]));
  }
  labels +=
      text_at(kLeft + columns * kCellWidth / 2, kTop + rows * kCellHeight + 42, "axis middle", "length in tokens");
  labels += fmt::format("<text transform=\"translate(14 {:.1f}) rotate(-90)\" class=\"axis middle\">depth</text>\n",
                        kTop + rows * kCellHeight / 2);

  return fmt::format(
      "<svg viewBox=\"0 0 {0:.0f} {1:.0f}\" style=\"max-width:{2:.0f}px\" role=\"img\" aria-labelledby=\"heat-{3}\">"
      "<title id=\"heat-{3}\">{3} attention: {4} of {5} facts found, by length of the text and depth of the fact in "
      "it</title>\n{6}{7}</svg>\n",
      width, height, width * 1.2, escape_html(attention), correct, trials, labels, empty + cells);
}

std::string speed_svg(const NeedleReport& report) {
  constexpr double kWidth = 760, kHeight = 400;
  const SpeedAxes axes = make_speed_axes(report, 92, 34, kWidth - 92 - 96, kHeight - 34 - 64);
  const double bottom = axes.top + axes.height, right = axes.left + axes.width;

  std::string grid;
  for (double tick : axes.second_ticks()) {
    grid += fmt::format("<line x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\" class=\"grid\"/>\n",
                        axes.left, right, axes.y(tick));
    grid += text_at(axes.left - 10, axes.y(tick) + 4, "tick end",
                    tick < 1 ? fmt::format("{:g} ms", tick * 1000) : fmt::format("{:g} s", tick));
  }
  for (std::int64_t length : report.options.lengths) {
    grid += text_at(axes.x(static_cast<double>(length)), bottom + 24, "tick middle", short_length(length));
  }
  grid += text_at(axes.left + axes.width / 2, kHeight - 8, "axis middle", "length in tokens");
  grid += text_at(4, 16, "axis", "time to read the prompt");

  std::string lines;
  std::string described;
  for (const std::string& attention : report.attentions) {
    std::string points, marks;
    std::vector<LengthSummary> rows = summarize(report, attention);
    std::sort(rows.begin(), rows.end(),
              [](const LengthSummary& a, const LengthSummary& b) { return a.length < b.length; });
    for (const LengthSummary& row : rows) {
      const double x = axes.x(static_cast<double>(row.length)), y = axes.y(row.seconds);
      points += fmt::format("{:.1f},{:.1f} ", x, y);
      marks += fmt::format(
          "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4.5\"><title>{} attention, {} tokens: {}</title></circle>\n", x, y,
          escape_html(attention), with_commas(row.length), duration_text(row.seconds));
      described += fmt::format("{} at {} tokens {}; ", attention, with_commas(row.length), duration_text(row.seconds));
    }
    lines += fmt::format("<g class=\"{}\"><polyline points=\"{}\"/>\n{}", series_class(attention), points, marks);
    lines += text_at(axes.x(static_cast<double>(rows.back().length)) + 12, axes.y(rows.back().seconds) + 5, "name",
                     attention);
    lines += "</g>\n";
  }
  std::string ratios;
  if (const auto compared = compared_attention(report)) {
    for (const LengthSummary& row : summarize(report, *compared)) {
      const std::optional<double> ratio = speed_up(report, *compared, row.length);
      if (!ratio) continue;
      const double x = axes.x(static_cast<double>(row.length));
      const double y_other = axes.y(row.seconds), y_full = axes.y(row.seconds * *ratio);
      ratios += fmt::format("<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\" class=\"gap\"/>\n", x,
                            y_full, y_other);
      ratios += text_at(x, std::max(y_other, y_full) + 20, "ratio middle", fmt::format("{:.1f}×", *ratio));
    }
  }
  return fmt::format(
      "<svg viewBox=\"0 0 {0:.0f} {1:.0f}\" class=\"curve\" role=\"img\" aria-labelledby=\"speed\">"
      "<title id=\"speed\">Time to read a prompt: {2}</title>\n{3}{4}{5}</svg>\n",
      kWidth, kHeight, escape_html(described), grid, ratios, lines);
}

}  // namespace moba::app
