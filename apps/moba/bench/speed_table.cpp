#include "bench/speed_table.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "bench/svg_style.h"
#include "report/svg_charts.h"

namespace moba::app {

namespace {

std::string pass_name(const AttendCase& problem) {
  if (problem.pass == "fwdbwd") return "forward + backward";
  if (problem.pass == "fwd") return "forward";
  return problem.pass == "bwd" ? "backward" : "decode";
}

std::string shape_name(const SpeedGoal& goal) {
  const AttendCase& problem = goal.problem;
  const std::string choice =
      problem.kind == "full" ? "full" : fmt::format("B {} k {}", problem.block_size, problem.top_k);
  const std::string heads =
      problem.kv_heads == problem.heads ? "" : fmt::format(", {}/{} heads", problem.heads, problem.kv_heads);
  return fmt::format("{}{}, d {}, {}{}", choice, heads, problem.head_dim, problem.dtype,
                     goal.simd_level.empty() ? "" : ", ours " + goal.simd_level);
}

}  // namespace

std::string SpeedGoal::name() const {
  return fmt::format("{} {}K, {}", pass_name(problem), problem.n / 1024, shape_name(*this));
}

std::string SpeedGoal::series() const {
  return fmt::format("{}, {}", pass_name(problem), shape_name(*this));
}

std::vector<SpeedGoal> speed_goals() {
  std::vector<SpeedGoal> goals;
  const auto add = [&](AttendCase problem, double at_least, double aim, const char* simd_level = "") {
    for (const std::int64_t dim : {64, 128}) {
      if (problem.kv_heads != problem.heads && dim == 64) continue;
      problem.head_dim = dim;
      goals.push_back({problem, at_least, aim, simd_level});
    }
  };
  add({.pass = "fwd", .n = 8192}, 3.5, 5);
  add({.pass = "fwd", .n = 32768}, 12, 18);
  add({.pass = "fwd", .n = 32768, .block_size = 128, .top_k = 8}, 12, 20);
  add({.pass = "fwdbwd", .n = 16384}, 5, 8);
  add({.pass = "decode", .n = 131072}, 200, 400);
  add({.pass = "fwd", .n = 8192, .kind = "full"}, 1.3, 1.7);
  add({.pass = "fwd", .n = 16384, .heads = 32, .kv_heads = 8}, 6, 9);
  add({.pass = "fwd", .n = 8192, .dtype = "fp32"}, 2.5, 2.5);
  add({.pass = "fwd", .n = 32768, .dtype = "fp32"}, 9, 9);
  add({.pass = "fwd", .n = 8192}, 2, 2, "AVX-512");
  add({.pass = "fwd", .n = 32768}, 7, 7, "AVX-512");
  return goals;
}

std::vector<SpeedGoal> cuda_speed_goals() {
  constexpr std::int64_t kK = 1024;
  struct Ratio {
    double at_least = 0, aim = 0;  // 0: nothing is asked
  };
  struct Row {
    std::int64_t n, heads, kv_heads, head_dim, block_size, top_k;
    Ratio forward, backward;
  };
  const Row rows[] = {
      {8 * kK, 16, 16, 128, 512, 3, {1.7, 2.1}, {2, 2.5}},
      {32 * kK, 16, 16, 128, 512, 3, {6, 8}, {7, 9.5}},
      {32 * kK, 16, 16, 128, 128, 8, {4.5, 6.5}, {7, 9.5}},
      {64 * kK, 4, 4, 64, 64, 8, {6, 10}, {6, 10}},
      {128 * kK, 16, 16, 128, 512, 3, {32, 41}, {35, 44}},
      {128 * kK, 16, 16, 128, 128, 8, {20, 30}, {33, 44}},
      {128 * kK, 16, 16, 128, 4096, 12, {1.6, 1.9}, {1.2, 1.7}},
      {128 * kK, 32, 8, 128, 128, 8, {20, 32}, {33, 44}},
      {512 * kK, 16, 16, 128, 128, 8, {70, 91}, {}},
      {512 * kK, 16, 16, 128, 4096, 12, {5.5, 7.4}, {}},
      {1024 * kK, 16, 16, 128, 4096, 12, {11, 14}, {}},
  };
  std::vector<SpeedGoal> goals;
  const auto add = [&](const char* pass, Ratio Row::*asked) {
    for (const Row& row : rows) {
      const Ratio& ratio = row.*asked;
      if (ratio.at_least == 0) continue;
      const AttendCase problem{.pass = pass,
                               .n = row.n,
                               .heads = row.heads,
                               .kv_heads = row.kv_heads,
                               .head_dim = row.head_dim,
                               .block_size = row.block_size,
                               .top_k = row.top_k};
      goals.push_back({problem, ratio.at_least, ratio.aim, ""});
    }
  };
  add("fwd", &Row::forward);
  add("bwd", &Row::backward);
  return goals;
}

std::string speed_table_svg(const std::vector<SpeedBar>& bars, const std::string& machine) {
  constexpr double kLeft = 360, kWidth = 520, kRow = 26, kTop = 40;
  double most = 10;
  bool asked = false;
  for (const SpeedBar& bar : bars) {
    most = std::max({most, bar.ratio, bar.aim});
    asked = asked || bar.at_least > 0;
  }
  const double decades = std::log10(most * 1.5);
  const auto x = [&](double ratio) { return kLeft + kWidth * std::log10(std::max(ratio, 1.0)) / decades; };
  const double height = kTop + kRow * static_cast<double>(bars.size()) + 46;

  std::string body;
  for (double tick = 1; tick <= most * 1.5; tick *= 10) {
    body += fmt::format(
        "<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2:.1f}\" class=\"grid\"/>"
        "<text x=\"{0:.1f}\" y=\"{3:.1f}\" class=\"soft middle\">{4:g}×</text>\n",
        x(tick), kTop, height - 44, height - 28, tick);
  }
  for (std::size_t i = 0; i < bars.size(); ++i) {
    const SpeedBar& bar = bars[i];
    const double y = kTop + kRow * static_cast<double>(i);
    body += fmt::format(
        "<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"end\">{}</text>"
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"16\" rx=\"3\" class=\"bar\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\">{:.1f}×</text>\n",
        kLeft - 10, y + 16, escape_html(bar.name), kLeft, y + 4, x(bar.ratio) - kLeft,
        x(std::max(bar.ratio, bar.at_least)) + 8, y + 16, bar.ratio);
    if (bar.at_least > 0) {
      body += fmt::format("<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\" class=\"goal\"/>\n",
                          x(bar.at_least), y + 2, y + 22);
    }
  }
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" role=\"img\">\n"
      "<title>Speed of libmoba over torch's dense attention</title>\n<style>{2}</style>\n"
      "<rect width=\"{0:.0f}\" height=\"{1:.0f}\" rx=\"8\" class=\"back\"/>\n"
      "<text x=\"10\" y=\"22\">Times faster than torch's dense attention in the same run{3}</text>\n"
      "{4}<text x=\"10\" y=\"{5:.0f}\" class=\"soft\">{6}</text>\n</svg>\n",
      kLeft + kWidth + 80, height, kBenchStyle, asked ? "; the mark is what was asked for" : "", body, height - 8,
      escape_html(machine));
}

}  // namespace moba::app
