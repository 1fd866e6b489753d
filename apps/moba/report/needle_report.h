// What a needle run found, and the forms it is shown in: JSON, a table for a terminal, a page, a picture.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "lm/eval/needle_result.h"

namespace moba::app {

struct NeedleReport {
  std::string model;               // folder
  std::string attention_plans;     // "moba: moba(64,8) x7 + full x1; full: full x8"
  std::vector<std::string> texts;  // files
  lm::NeedleOptions options;
  std::vector<std::string> attentions;  // in the order they ran
  std::vector<lm::NeedleResult> results;
  std::string command;  // the command line that makes it again
  std::string machine;  // one line
  std::string date;
  nlohmann::ordered_json machine_json;
};

/// All depths of one length under one attention.
struct LengthSummary {
  std::int64_t length = 0;
  std::int64_t trials = 0;
  std::int64_t correct = 0;
  double seconds = 0;  // median over the depths
};

/// Whether that length was read with that attention: full attention may be left out of the longest.
bool was_read(const NeedleReport& report, const std::string& attention, std::int64_t length);

/// In the order of options.lengths; lengths that were not read are left out.
std::vector<LengthSummary> summarize(const NeedleReport& report, const std::string& attention);

/// Right answers to the questions of one sentence pattern, over all lengths and depths.
lm::PatternCount count_pattern(const NeedleReport& report, const std::string& attention, std::size_t pattern);

/// How many times faster `attention` read a length than full attention did, where both ran.
std::optional<double> speed_up(const NeedleReport& report, const std::string& attention, std::int64_t length);

/// The attention that is compared to full: "moba", else "model"; none where full did not run.
std::optional<std::string> compared_attention(const NeedleReport& report);

/// "16,384"
std::string with_commas(std::int64_t number);
/// "4K", "16K", "1500"
std::string short_length(std::int64_t length);
/// "0.82 s", "12.4 s", "3:05 min"
std::string duration_text(double seconds);

std::string needle_table(const NeedleReport& report, bool colour);
nlohmann::ordered_json needle_json(const NeedleReport& report);
std::string needle_html(const NeedleReport& report);
/// A PNG file's bytes.
std::string needle_png(const NeedleReport& report);

}  // namespace moba::app
