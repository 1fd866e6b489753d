#include "lm/train/report.h"

#include <fmt/core.h>

#include <cmath>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "lm/train/metrics_file.h"
#include "lm/util/files.h"
#include "moba/error.h"

namespace moba::lm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Values = std::vector<std::pair<std::string, double>>;

// NaN marks what was not counted; JSON has no word for it and TensorBoard should not plot it.
Values counted(Values values) {
  std::erase_if(values, [](const auto& entry) { return std::isnan(entry.second); });
  return values;
}

Values scalars(const StepReport& report) {
  Values values = {{"train/loss", report.figures.loss},
                   {"train/text_loss", report.figures.text_loss},
                   {"train/recall", report.figures.recall},
                   {"train/recall_exact", report.figures.exact},
                   {"train/gradient_norm", report.figures.gradient_norm},
                   {"train/learning_rate", report.learning_rate},
                   {"speed/tokens_per_second", report.tokens_per_second},
                   {"speed/tflops", report.tflops},
                   {"memory/bytes", static_cast<double>(report.memory.peak)}};
  if (report.peak_tflops > 0) values.emplace_back("speed/mfu", report.tflops / report.peak_tflops);
  return counted(std::move(values));
}

Values scalars(const ValidationReport& report) {
  Values values = {{"valid/text_loss", report.text.text_loss}};
  if (report.recall.steps > 0) {
    values.emplace_back("valid/recall", report.recall.recall);
    values.emplace_back("valid/recall_exact", report.recall.exact);
  }
  return counted(std::move(values));
}

std::string bytes_text(std::int64_t bytes) {
  return fmt::format("{:.2f} GB", static_cast<double>(bytes) / 1e9);
}

std::string rate_text(double per_second) {
  return per_second >= 1e6 ? fmt::format("{:.2f}M", per_second / 1e6) : fmt::format("{:.1f}k", per_second / 1e3);
}

}  // namespace

std::string clock_text(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::llround(std::max(0.0, seconds)));
  const std::int64_t hours = whole / 3600, minutes = whole / 60 % 60;
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, whole % 60);
  return fmt::format("{}:{:02}", minutes, whole % 60);
}

std::string step_line(const StepReport& report) {
  const StepFigures& figures = report.figures;
  std::string line = fmt::format("step {}/{} | loss {:.4f}", report.step, report.steps, figures.loss);
  if (!std::isnan(figures.text_loss)) line += fmt::format(" | text {:.4f}", figures.text_loss);
  if (!std::isnan(figures.recall)) line += fmt::format(" | recall {:.3f} exact {:.3f}", figures.recall, figures.exact);
  line += fmt::format(" | lr {:.2e} | norm {:.3f} | {} tok/s | {:.2f} TFLOP/s", report.learning_rate,
                      figures.gradient_norm, rate_text(report.tokens_per_second), report.tflops);
  if (report.peak_tflops > 0) line += fmt::format(" | MFU {:.1f}%", 100 * report.tflops / report.peak_tflops);
  line += fmt::format(" | {} | ETA {}", bytes_text(report.memory.peak), clock_text(report.seconds_left));
  if (figures.skipped > 0) line += fmt::format(" | {} steps skipped: gradient not finite", figures.skipped);
  return line;
}

Reporter::Reporter(const fs::path& metrics, const fs::path& events, std::int64_t first_step,
                   std::function<void(const std::string&)> log)
    : metrics_file_(metrics), events_(events, first_step), log_(std::move(log)) {
  write_file_atomically(metrics, fs::exists(metrics) ? records_up_to(read_file(metrics), first_step) : "");
  metrics_.open(metrics, std::ios::binary | std::ios::app);
  append("");
}

void Reporter::append(const std::string& record) {
  metrics_ << record;
  metrics_.flush();
  if (!metrics_) throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: cannot be written", metrics_file_.string()));
}

void Reporter::notice(const std::string& line) {
  if (log_) log_(line);
}

void Reporter::step(const StepReport& report) {
  json record = {{"step", report.step},
                 {"tokens", report.tokens},
                 {"attention", report.attention},
                 {"sequence_length", report.sequence_length},
                 {"seconds_left", report.seconds_left},
                 {"skipped_steps", report.figures.skipped}};
  const Values values = scalars(report);
  for (const auto& [tag, value] : values) record[tag.substr(tag.find('/') + 1)] = value;
  append(record.dump() + "\n");
  events_.scalars(report.step, values);
  notice(step_line(report));
}

void Reporter::validation(const ValidationReport& report) {
  json record = {{"step", report.step}};
  const Values values = scalars(report);
  std::string line = fmt::format("step {} | validation", report.step);
  for (const auto& [tag, value] : values) {
    const std::string name = tag.substr(tag.find('/') + 1);
    record["valid_" + name] = value;
    line += fmt::format(" | {} {:.4f}", name, value);
  }
  append(record.dump() + "\n");
  events_.scalars(report.step, values);
  notice(line);
}

}  // namespace moba::lm
