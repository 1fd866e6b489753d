#include "lm/eval/needle_facts.h"

#include <array>
#include <utility>

namespace moba::lm {
namespace {

constexpr std::array<std::string_view, 12> kPatterns = {
    "The locker that {a} rented at the old railway station opens with",
    "When {a} came home from the mountains, the only word left in the notebook was",
    "On the inside of the silver watch that belonged to {a} somebody had scratched",
    "According to the harbour book, the boat that {a} bought from {b} is registered as",
    "The parcel which {a} sent to {b} before the winter was filed under",
    "Everybody in {p} remembers that {a} used to call the grey mare",
    "{a} told {b} in a whisper that the garden gate would only open for",
    "The seeds that {a} carried home from {p} were labelled",
    "In the last will of {a}, the house on the hill near {p} is entered as",
    "The bottle that the chemist of {p} prepared for {a} bore the mark",
    "At the autumn auction {a} outbid {b} for the painting listed as",
    "If a stranger asks for {a} at the inn of {p}, the answer must be",
};

constexpr std::array<std::string_view, 40> kFirstNames = {
    "Agatha",   "Alban",   "Beatrix",  "Benedict", "Clement",  "Cordelia", "Cosmo",    "Dorothea",
    "Edmund",   "Elspeth", "Felicity", "Fergus",   "Gideon",   "Ginevra",  "Hester",   "Horatio",
    "Imogen",   "Ivor",    "Jocasta",  "Jasper",   "Katrina",  "Lambert",  "Leonora",  "Magnus",
    "Marigold", "Nathan",  "Nerissa",  "Octavia",  "Oswald",   "Philippa", "Quentin",  "Rosalind",
    "Rupert",   "Sabina",  "Silas",    "Theodora", "Thaddeus", "Ursula",   "Winifred", "Zachary"};

constexpr std::array<std::string_view, 40> kLastNames = {
    "Abernathy", "Ashdown",   "Bellamy",    "Birtwistle", "Carmody",     "Colquhoun",    "Dalrymple", "Dunmore",
    "Eastlake",  "Fairbairn", "Fothergill", "Garrick",    "Greenway",    "Hathersage",   "Holloway",  "Inchbald",
    "Jellicoe",  "Kettering", "Kirkbride",  "Lanyon",     "Lovelock",    "Mallory",      "Merriman",  "Netherby",
    "Northcote", "Oakeshott", "Ormerod",    "Pemberton",  "Prendergast", "Quillfeather", "Ravenhill", "Rowbotham",
    "Sedgwick",  "Stanhope",  "Thackery",   "Trelawney",  "Underhill",   "Venables",     "Whitlock",  "Yardley"};

constexpr std::array<std::string_view, 24> kPlaces = {
    "Ambleforth",  "Brackenby",  "Coldmarsh", "Dunhollow",  "Eskrigg",   "Fallowmere", "Greywater",  "Hartsease",
    "Inglethorpe", "Jarrowdale", "Kelderby",  "Lindenfold", "Marrowby",  "Netherwick", "Oxenholt",   "Pennyfleet",
    "Quernmoor",   "Rosewater",  "Stainbeck", "Thornaby",   "Ullscarth", "Vennford",   "Withernsea", "Yewbarrow"};

constexpr std::array<std::string_view, 18> kOnsets = {"b", "d", "f", "g", "k", "l",  "m",  "n",  "p",
                                                      "r", "s", "t", "v", "z", "br", "dr", "st", "tr"};
constexpr std::array<std::string_view, 7> kVowels = {"a", "e", "i", "o", "u", "ai", "ou"};
constexpr std::array<std::string_view, 8> kCodas = {"", "", "", "l", "n", "r", "s", "x"};

template <std::size_t N>
std::string pick(Random& random, const std::array<std::string_view, N>& choices) {
  return std::string(random.pick(choices));
}

/// One of `choices` that is not in `taken`, which it joins. Starts again from all of them when none is left.
template <std::size_t N>
std::string pick_new(Random& random, const std::array<std::string_view, N>& choices, std::set<std::string>& taken) {
  std::vector<std::string> left;
  for (std::string_view choice : choices) {
    if (!taken.contains(std::string(choice))) left.emplace_back(choice);
  }
  if (left.empty()) return pick(random, choices);
  std::string chosen = random.pick(left);
  taken.insert(chosen);
  return chosen;
}

}  // namespace

std::span<const std::string_view> fact_patterns() {
  return kPatterns;
}

std::string FactMaker::draw_value(bool digits) {
  for (;;) {
    std::string value;
    if (digits) {
      const std::uint64_t length = 4 + random_.below(3);
      value += static_cast<char>('1' + random_.below(9));
      while (value.size() < length) value += static_cast<char>('0' + random_.below(10));
    } else {
      const std::uint64_t syllables = 2 + random_.below(3);
      for (std::uint64_t i = 0; i < syllables; ++i) {
        value += pick(random_, kOnsets);
        value += pick(random_, kVowels);
      }
      value += pick(random_, kCodas);
    }
    if (values_.insert(value).second) return value;
  }
}

Fact FactMaker::draw(std::size_t pattern, bool digits, std::set<std::string>& group_names) {
  for (;;) {
    std::string beginning;
    std::string_view rest = kPatterns[pattern];
    for (std::size_t brace = rest.find('{'); brace != std::string_view::npos; brace = rest.find('{')) {
      beginning += rest.substr(0, brace);
      if (rest[brace + 1] == 'p') {
        beginning += pick_new(random_, kPlaces, group_names);
      } else {
        beginning += pick_new(random_, kFirstNames, group_names);
        beginning += ' ';
        beginning += pick_new(random_, kLastNames, group_names);
      }
      rest.remove_prefix(brace + 3);
    }
    beginning += rest;
    if (beginnings_.insert(beginning).second) return {pattern, std::move(beginning), draw_value(digits)};
  }
}

FactGroup FactMaker::make(std::size_t pattern, std::int64_t distractors) {
  const bool digits = random_.below(2) == 0;
  std::set<std::string> group_names;
  FactGroup group;
  group.fact = draw(pattern, digits, group_names);
  for (std::int64_t i = 0; i < distractors; ++i) group.distractors.push_back(draw(pattern, digits, group_names));
  return group;
}

}  // namespace moba::lm
