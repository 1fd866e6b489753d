// The needle page: one file, no script, nothing fetched.
#include <algorithm>

#include <fmt/format.h>

#include "lm/eval/needle_facts.h"
#include "report/colour.h"
#include "report/needle_report.h"
#include "report/page_style.h"
#include "report/svg_charts.h"

namespace moba::app {
namespace {

LengthSummary total_of(const NeedleReport& report, const std::string& attention) {
  LengthSummary total;
  for (const LengthSummary& row : summarize(report, attention)) {
    total.trials += row.trials;
    total.correct += row.correct;
    total.length = std::max(total.length, row.length);
  }
  return total;
}

double percent(std::int64_t part, std::int64_t whole) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

/// "MoBA" and "full attention" where a reader meets the names.
std::string spoken(const std::string& attention) {
  if (attention == "moba") return "MoBA";
  if (attention == "full") return "full attention";
  return "the model's own plan";
}

std::string tile(const std::string& number, const std::string& meaning) {
  return fmt::format("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", escape_html(number), escape_html(meaning));
}

std::string tiles(const NeedleReport& report) {
  std::string html = "<div class=\"tiles\">\n";
  for (const std::string& attention : report.attentions) {
    const LengthSummary total = total_of(report, attention);
    html += tile(fmt::format("{:.4g}%", percent(total.correct, total.trials)),
                 fmt::format("found with {}: {} of {}", spoken(attention), total.correct, total.trials));
  }
  if (const auto compared = compared_attention(report)) {
    std::int64_t longest = 0;
    for (const LengthSummary& row : summarize(report, *compared)) {
      if (speed_up(report, *compared, row.length)) longest = std::max(longest, row.length);
    }
    if (longest > 0) {
      html +=
          tile(fmt::format("{:.1f}×", *speed_up(report, *compared, longest)),
               fmt::format("{} against full attention in reading {} tokens", spoken(*compared), with_commas(longest)));
    }
  }
  return html + "</div>\n";
}

std::string heading(const std::string& attention) {
  return fmt::format("<h3><span class=\"dot series-{0}\"></span>{0} attention</h3>", attention);
}

std::string heat_maps(const NeedleReport& report) {
  std::string html = "<h2>Found, by length of the text and depth of the fact</h2>\n<div class=\"maps\">\n";
  for (const std::string& attention : report.attentions) {
    html += "<figure class=\"card\" style=\"margin:0\">" + heading(attention) + heat_map_svg(report, attention) +
            "</figure>\n";
  }
  const auto stop = [](double share) {
    const Rgb colour = share_colour(share);
    return fmt::format("rgb({},{},{})", colour.red, colour.green, colour.blue);
  };
  return html + fmt::format(
                    "</div>\n<div class=\"legend\"><span>none right</span>"
                    "<i style=\"background:linear-gradient(90deg,{},{},{})\"></i><span>all right</span></div>\n",
                    stop(0), stop(0.5), stop(1));
}

std::string numbers_table(const NeedleReport& report) {
  std::string html =
      "<h2>In numbers</h2>\n<div class=\"card "
      "scroll\"><table><thead><tr><th>attention</th><th>length</th><th>right</th>"
      "<th>share</th><th>time to read</th><th>tokens/s</th><th>against full</th></tr></thead><tbody>\n";
  for (const std::string& attention : report.attentions) {
    for (const LengthSummary& row : summarize(report, attention)) {
      const auto ratio = speed_up(report, attention, row.length);
      html += fmt::format(
          "<tr><td><span class=\"dot series-{0}\"></span>{0}</td><td>{1}</td><td>{2}/{3}</td><td>{4:.1f}%</td>"
          "<td>{5}</td><td>{6}</td><td>{7}</td></tr>\n",
          escape_html(attention), with_commas(row.length), row.correct, row.trials, percent(row.correct, row.trials),
          duration_text(row.seconds),
          with_commas(static_cast<std::int64_t>(static_cast<double>(row.length) / row.seconds)),
          ratio ? fmt::format("{:.2f}×", *ratio) : "");
    }
  }
  return html + "</tbody></table></div>\n";
}

std::string pattern_table(const NeedleReport& report) {
  std::string html =
      "<details><summary>By sentence</summary><div class=\"card scroll\"><table><thead><tr><th>sentence</th>";
  for (const std::string& attention : report.attentions) html += "<th>" + escape_html(attention) + "</th>";
  html += "</tr></thead><tbody>\n";
  for (std::size_t pattern = 0; pattern < lm::fact_patterns().size(); ++pattern) {
    std::string cells;
    bool asked = false;
    for (const std::string& attention : report.attentions) {
      const lm::PatternCount count = count_pattern(report, attention, pattern);
      asked = asked || count.trials > 0;
      cells += fmt::format("<td>{}/{}</td>", count.correct, count.trials);
    }
    if (!asked) continue;
    html += fmt::format("<tr><td class=\"wrap\">{} …</td>{}</tr>\n", escape_html(lm::fact_patterns()[pattern]), cells);
  }
  return html + "</tbody></table></div></details>\n";
}

std::string misses(const NeedleReport& report) {
  constexpr int kShown = 40;
  std::string items;
  int count = 0;
  for (const lm::NeedleResult& result : report.results) {
    for (const std::string& miss : result.misses) {
      if (count++ < kShown) {
        items += fmt::format("<li>{}, {} tokens, depth {:.0f}%: {}</li>\n", escape_html(result.attention),
                             with_commas(result.length), 100 * result.depth, escape_html(miss));
      }
    }
  }
  if (count == 0) return "";
  return fmt::format("<details><summary>{} wrong answer{}</summary><ul class=\"soft\">\n{}</ul>{}</details>\n", count,
                     count == 1 ? "" : "s", items,
                     count > kShown ? fmt::format("<p class=\"soft\">… and {} more.</p>", count - kShown) : "");
}

std::string method(const NeedleReport& report) {
  return fmt::format(
      "<h2>How it was asked</h2>\n"
      "<p>Made-up facts, sentences that end in a number or an invented word, are put at sentence ends into real text. "
      "Each has {} near-identical sentence{} beside it that differ in names and value only. The text is read once; "
      "then "
      "comes a blank line and the same sentence up to its value, and the model's most likely continuation must be the "
      "value exactly, with no letter or digit after it. Every prompt has exactly the stated number of tokens.</p>\n",
      report.options.distractors, report.options.distractors == 1 ? "" : "s");
}

std::string settings(const NeedleReport& report) {
  std::string texts;
  for (const std::string& text : report.texts) texts += (texts.empty() ? "" : ", ") + text;
  const auto row = [](const char* name, const std::string& value) {
    return fmt::format("<dt>{}</dt><dd>{}</dd>\n", name, escape_html(value));
  };
  return "<h2>Settings</h2>\n<div class=\"card\"><dl>\n" + row("model", report.model) +
         row("attention", report.attention_plans) + row("text", texts) +
         row("asked", fmt::format("{} facts at each of {} depths; seed {}", report.options.needles,
                                  report.options.depths, report.options.seed)) +
         row("machine", report.machine) +
         row("program",
             "moba " + report.machine_json.value("moba", "") + ", torch " + report.machine_json.value("torch", "")) +
         row("date", report.date) +
         "</dl></div>\n<p class=\"soft\" style=\"margin-top:16px\">To repeat it:</p>\n<pre>" +
         escape_html(report.command) + "</pre>\n";
}

}  // namespace

std::string needle_html(const NeedleReport& report) {
  const std::int64_t longest = *std::max_element(report.options.lengths.begin(), report.options.lengths.end());
  const std::string title = fmt::format("Needles in {} tokens of text", with_commas(longest));
  return fmt::format(
             "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
             "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{0}</title>\n<style>",
             title) +
         kPageStyle +
         fmt::format(
             "</style></head>\n<body><main>\n<p class=\"eyebrow\">moba needle · {0}</p>\n<h1>{1}</h1>\n"
             "<p>Facts were hidden in real text and asked for by their own beginning. The maps show how many were "
             "answered exactly, the curve how long the text took to read.</p>\n",
             escape_html(report.date), title) +
         tiles(report) + heat_maps(report) + "<h2>Time to read</h2>\n<figure class=\"card\" style=\"margin:0\">" +
         speed_svg(report) + "</figure>\n" + numbers_table(report) + method(report) + pattern_table(report) +
         misses(report) + settings(report) + "</main></body></html>\n";
}

}  // namespace moba::app
