#include "lm/data/recall.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <utility>

#include "lm/data/cast.h"
#include "lm/data/facts.h"

namespace moba::lm {
namespace {

// Of a sequence; the rest stays text. Ten facts with their repeats fill most of 2 K bytes.
constexpr double kMostWoven = 0.8;
// Around the usual number of facts, so that the model sees crowded and quiet sequences.
constexpr double kFewest = 0.5, kMost = 1.5;
constexpr std::size_t kLongestLead = 2;  // "\n\n"

// A sentence and its place in the order of the sequence, from 0 to 1.
struct Insertion {
  double place = 0;
  const WovenFact* fact = nullptr;
  bool repeat = false;
  std::string_view lead;  // what separates it from the text before

  std::size_t size() const { return lead.size() + fact->beginning.size() + 1 + fact->value.size() + 1; }
};

bool is_space(char c) {
  return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

// Just behind the marks that end sentences, before white space, in text[0, limit). Text without sentences (tables,
// verse) is cut at white space, and text without that anywhere.
std::vector<std::size_t> insertion_points(std::string_view text, std::size_t limit) {
  std::vector<std::size_t> points, spaces;
  for (std::size_t at = 1; at < limit; ++at) {
    if (!is_space(text[at])) continue;
    if (!is_space(text[at - 1])) spaces.push_back(at);
    std::size_t end = at;
    while (end > 0 && (text[end - 1] == '"' || text[end - 1] == '\'' || text[end - 1] == ')')) --end;
    if (end >= 3 && text.substr(end - 3, 2) == "\xE2\x80") end -= 3;  // a closing curly quote
    if (end == 0) continue;
    const char mark = text[end - 1];
    // Behind a short capitalised word a full stop is an abbreviation ("Mr.", "Dr.").
    const bool abbreviation = mark == '.' && end >= 3 && (text[end - 3] == 'M' || text[end - 3] == 'D');
    if (mark == '!' || mark == '?' || (mark == '.' && !abbreviation)) points.push_back(at);
  }
  if (points.size() < 2) points = std::move(spaces);
  if (points.empty()) points.push_back(limit / 2);
  return points;
}

std::vector<std::vector<WovenFact>> draw_groups(Random& random, std::int64_t length,
                                                std::span<const std::uint8_t> library, const Lexicon& lexicon,
                                                const RecallConfig& config) {
  const double wanted = usual_facts(length) * config.density * (kFewest + (kMost - kFewest) * random.uniform());
  const double room = kMostWoven * static_cast<double>(length);
  const double copies = 1 + config.repeat_probability;
  const Cast cast(random, lexicon);
  std::vector<std::vector<WovenFact>> groups;
  double facts = 0, bytes = 0;
  while (facts < std::max(1.0, std::round(wanted))) {
    std::vector<WovenFact> group = draw_fact_group(random, library, lexicon, cast, config);
    // As many facts as are wanted and fit; the bytes are an expectation here, the caller counts exactly.
    std::size_t keep = 0;
    while (keep < group.size() && facts < std::max(1.0, std::round(wanted))) {
      const double size =
          static_cast<double>(group[keep].beginning.size() + group[keep].value.size() + 2 + kLongestLead) * copies;
      if (bytes + size > room) break;
      bytes += size;
      facts += 1;
      ++keep;
    }
    const bool full = keep < group.size();
    group.resize(keep);
    if (keep > 0) groups.push_back(std::move(group));
    if (full) break;
  }
  return groups;
}

std::string_view draw_lead(Random& random, double blank_line, double line) {
  const double draw = random.uniform();
  return draw < blank_line ? "\n\n" : draw < blank_line + line ? "\n" : " ";
}

struct Plan {
  std::vector<Insertion> inside;  // ascending by place
  std::vector<Insertion> at_end;  // in their order
  std::size_t bytes = 0;          // of both
};

Plan place(Random& random, const std::vector<std::vector<WovenFact>>& groups, std::size_t room,
           const RecallConfig& config) {
  Plan plan;
  const auto fits = [&](const Insertion& insertion) { return plan.bytes + insertion.size() + 1 <= room; };
  for (const std::vector<WovenFact>& group : groups) {
    for (const WovenFact& fact : group) {
      Insertion first{random.uniform(), &fact, false, draw_lead(random, 0.2, 0.05)};
      if (!fits(first)) continue;
      plan.bytes += first.size() + 1;
      plan.inside.push_back(first);
      if (!random.chance(config.repeat_probability)) continue;
      Insertion again = first;
      again.repeat = true;
      const bool at_end = random.chance(config.end_share);
      again.place = first.place + (1 - first.place) * random.uniform();
      again.lead = at_end ? draw_lead(random, 0.8, 0.08) : draw_lead(random, 0.5, 0.08);
      if (!fits(again)) continue;
      plan.bytes += again.size() + 1;
      (at_end ? plan.at_end : plan.inside).push_back(again);
    }
  }
  // A fact comes before its repeat: its place is smaller, or equal and then it stands first in the list.
  std::stable_sort(plan.inside.begin(), plan.inside.end(),
                   [](const Insertion& a, const Insertion& b) { return a.place < b.place; });
  for (std::size_t i = plan.at_end.size(); i > 1; --i) std::swap(plan.at_end[i - 1], plan.at_end[random.below(i)]);
  return plan;
}

class Writer {
 public:
  explicit Writer(std::int64_t length) {
    woven_.text.reserve(static_cast<std::size_t>(length));
    woven_.kinds.reserve(static_cast<std::size_t>(length));
  }

  void text(std::string_view bytes, ByteKind kind = ByteKind::kText) {
    woven_.text += bytes;
    woven_.kinds.insert(woven_.kinds.end(), bytes.size(), kind);
  }

  void insertion(const Insertion& insertion) {
    text(insertion.lead);
    text(insertion.fact->beginning, ByteKind::kFact);
    text(" ", ByteKind::kFact);
    const auto begin = static_cast<std::int64_t>(size());
    const ByteKind kind = insertion.repeat ? ByteKind::kAnswer : ByteKind::kFact;
    text(insertion.fact->value, kind);
    text({&insertion.fact->terminator, 1}, kind);
    if (insertion.repeat) woven_.answers.push_back({begin, static_cast<std::int64_t>(size())});
  }

  std::size_t size() const { return woven_.text.size(); }
  WovenText take() { return std::move(woven_); }

 private:
  WovenText woven_;
};

}  // namespace

double usual_facts(std::int64_t length) {
  constexpr std::array<std::pair<double, double>, 5> kFacts = {
      {{2048, 10}, {8192, 30}, {16384, 50}, {32768, 80}, {65536, 120}}};
  const auto bytes = static_cast<double>(length);
  std::size_t right = 1;
  while (right + 1 < kFacts.size() && bytes > kFacts[right].first) ++right;
  const auto [x0, y0] = kFacts[right - 1];
  const auto [x1, y1] = kFacts[right];
  return y0 * std::exp(std::log(y1 / y0) * std::log(bytes / x0) / std::log(x1 / x0));
}

WovenText weave_facts(Random& random, std::span<const std::uint8_t> haystack, std::int64_t length,
                      std::span<const std::uint8_t> library, const Lexicon& lexicon, const RecallConfig& config) {
  const std::string_view source(reinterpret_cast<const char*>(haystack.data()), haystack.size());
  const auto total = static_cast<std::size_t>(length);
  const std::vector<std::vector<WovenFact>> groups = draw_groups(random, length, library, lexicon, config);
  const Plan plan = place(random, groups, total - total / 10, config);
  std::size_t end_bytes = 0;
  for (const Insertion& insertion : plan.at_end) end_bytes += insertion.size();

  const std::vector<std::size_t> points = insertion_points(source, total - plan.bytes);
  Writer writer(length);
  std::size_t copied = 0;
  for (const Insertion& insertion : plan.inside) {
    const auto index = static_cast<std::size_t>(insertion.place * static_cast<double>(points.size()));
    const std::size_t point = std::max(copied, points[std::min(index, points.size() - 1)]);
    writer.text(source.substr(copied, point - copied));
    copied = point;
    writer.insertion(insertion);
    // A sentence in a paragraph of its own is mostly followed by a new line, not by the text's space.
    if (insertion.lead.size() > 1 && source[copied] == ' ' && random.chance(0.6)) {
      ++copied;
      writer.text("\n");
    }
  }
  writer.text(source.substr(copied, total - end_bytes - writer.size()));
  for (const Insertion& insertion : plan.at_end) writer.insertion(insertion);
  return writer.take();
}

}  // namespace moba::lm
