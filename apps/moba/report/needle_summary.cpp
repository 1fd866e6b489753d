#include <algorithm>

#include <fmt/format.h>

#include "lm/eval/needle_facts.h"
#include "report/needle_report.h"

namespace moba::app {
namespace {

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

std::optional<double> seconds_of(const NeedleReport& report, const std::string& attention, std::int64_t length) {
  std::vector<double> values;
  for (const lm::NeedleResult& result : report.results) {
    if (result.attention == attention && result.length == length) values.push_back(result.seconds);
  }
  if (values.empty()) return std::nullopt;
  return median(values);
}

std::string colour_of(const LengthSummary& row) {
  if (row.correct == row.trials) return "\x1b[32m";
  return 10 * row.correct >= 9 * row.trials ? "\x1b[33m" : "\x1b[31m";
}

}  // namespace

bool was_read(const NeedleReport& report, const std::string& attention, std::int64_t length) {
  return seconds_of(report, attention, length).has_value();
}

std::vector<LengthSummary> summarize(const NeedleReport& report, const std::string& attention) {
  std::vector<LengthSummary> rows;
  for (std::int64_t length : report.options.lengths) {
    const std::optional<double> seconds = seconds_of(report, attention, length);
    if (!seconds) continue;
    LengthSummary row{.length = length, .seconds = *seconds};
    for (const lm::NeedleResult& result : report.results) {
      if (result.attention != attention || result.length != length) continue;
      row.trials += result.trials;
      row.correct += result.correct;
    }
    rows.push_back(row);
  }
  return rows;
}

lm::PatternCount count_pattern(const NeedleReport& report, const std::string& attention, std::size_t pattern) {
  lm::PatternCount sum{.pattern = pattern};
  for (const lm::NeedleResult& result : report.results) {
    if (result.attention != attention) continue;
    for (const lm::PatternCount& count : result.patterns) {
      if (count.pattern != pattern) continue;
      sum.trials += count.trials;
      sum.correct += count.correct;
    }
  }
  return sum;
}

std::optional<double> speed_up(const NeedleReport& report, const std::string& attention, std::int64_t length) {
  const std::optional<double> full = seconds_of(report, "full", length);
  const std::optional<double> other = seconds_of(report, attention, length);
  if (attention == "full" || !full || !other || *other <= 0) return std::nullopt;
  return *full / *other;
}

std::optional<std::string> compared_attention(const NeedleReport& report) {
  const auto ran = [&](const char* name) {
    return std::find(report.attentions.begin(), report.attentions.end(), name) != report.attentions.end();
  };
  if (!ran("full")) return std::nullopt;
  for (const char* name : {"moba", "model"}) {
    if (ran(name)) return name;
  }
  return std::nullopt;
}

std::string with_commas(std::int64_t number) {
  std::string text = std::to_string(number);
  for (std::size_t at = text.size(); at > 3 && text[at - 4] != '-'; at -= 3) text.insert(at - 3, 1, ',');
  return text;
}

std::string short_length(std::int64_t length) {
  return length >= 1024 && length % 1024 == 0 ? fmt::format("{}K", length / 1024) : std::to_string(length);
}

std::string duration_text(double seconds) {
  if (seconds < 0.9995) return fmt::format("{:.0f} ms", seconds * 1000);
  if (seconds < 9.995) return fmt::format("{:.2f} s", seconds);
  if (seconds < 99.95) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  return fmt::format("{}:{:02} min", whole / 60, whole % 60);
}

std::string needle_table(const NeedleReport& report, bool colour) {
  std::string text = fmt::format("\n  {:<10} {:>10}   {:>12}   {:>10}   {:>10}   {:>8}\n", "attention", "length",
                                 "right", "read in", "tokens/s", "speed-up");
  text += "  " + std::string(71, '-') + "\n";
  for (const std::string& attention : report.attentions) {
    for (const LengthSummary& row : summarize(report, attention)) {
      const std::string right = fmt::format("{}/{} {:3.0f}%", row.correct, row.trials,
                                            100.0 * static_cast<double>(row.correct) / static_cast<double>(row.trials));
      const std::optional<double> ratio = speed_up(report, attention, row.length);
      text +=
          fmt::format("  {:<10} {:>10}   {}{:>12}{}   {:>10}   {:>10}   {:>8}\n", attention, with_commas(row.length),
                      colour ? colour_of(row) : "", right, colour ? "\x1b[0m" : "", duration_text(row.seconds),
                      with_commas(static_cast<std::int64_t>(static_cast<double>(row.length) / row.seconds)),
                      ratio ? fmt::format("{:.2f}x", *ratio) : "");
    }
  }
  return text + "\n";
}

nlohmann::ordered_json needle_json(const NeedleReport& report) {
  nlohmann::ordered_json json;
  json["results"] = nlohmann::ordered_json::array();
  for (const lm::NeedleResult& result : report.results) {
    nlohmann::ordered_json row;
    row["attention"] = result.attention;
    row["length"] = result.length;
    row["depth"] = result.depth;
    row["trials"] = result.trials;
    row["correct"] = result.correct;
    row["seconds"] = result.seconds;
    row["misses"] = result.misses;
    json["results"].push_back(row);
  }
  json["templates"] = nlohmann::ordered_json::array();
  for (const std::string& attention : report.attentions) {
    for (std::size_t pattern = 0; pattern < lm::fact_patterns().size(); ++pattern) {
      const lm::PatternCount count = count_pattern(report, attention, pattern);
      if (count.trials == 0) continue;
      json["templates"].push_back({{"attention", attention},
                                   {"template", std::string(lm::fact_patterns()[pattern]) + " {value}."},
                                   {"trials", count.trials},
                                   {"correct", count.correct}});
    }
  }
  json["settings"] = {{"model", report.model},
                      {"plans", report.attention_plans},
                      {"texts", report.texts},
                      {"lengths", report.options.lengths},
                      {"depths", report.options.depths},
                      {"needles", report.options.needles},
                      {"distractors", report.options.distractors},
                      {"seed", report.options.seed},
                      {"command", report.command}};
  json["machine"] = report.machine_json;
  json["date"] = report.date;
  return json;
}

}  // namespace moba::app
