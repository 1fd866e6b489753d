// How a ChoiceRule splits a row's past blocks. Both host backends stand on this file, so that they agree on every edge.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moba/backend.h"

namespace moba {

/// The past blocks of one row in ascending order: `sinks` forced ones, candidates [sinks, end), and the block before
/// the row's own where it is forced and not a sink already.
struct PastBlocks {
  std::int64_t sinks = 0, end = 0, past = 0;

  PastBlocks(const ChoiceRule& rule, std::int64_t past_blocks)
      : sinks(std::min(rule.sink_blocks, past_blocks)),
        end(past_blocks - (rule.force_previous && past_blocks > sinks ? 1 : 0)),
        past(past_blocks) {}

  /// Writes a list of `budget` places. `chosen` candidates stand at list + sinks already, in any order.
  void finish_list(std::int32_t* list, std::int64_t chosen, std::int64_t budget) const {
    std::sort(list + sinks, list + sinks + chosen);
    finish_sorted_list(list, chosen, budget);
  }

  /// The same where they stand in ascending order.
  void finish_sorted_list(std::int32_t* list, std::int64_t chosen, std::int64_t budget) const {
    for (std::int64_t block = 0; block < sinks; ++block) list[block] = static_cast<std::int32_t>(block);
    std::int64_t held = sinks + chosen;
    if (end < past) list[held++] = static_cast<std::int32_t>(end);
    std::fill(list + held, list + budget, -1);
  }
};

/// Slots that are left for candidates. The same for every row that has any: such a row has all the forced blocks.
inline std::int64_t free_slots(const ChoiceRule& rule, std::int64_t budget) {
  return std::max<std::int64_t>(0, budget - std::min(rule.sink_blocks, budget) - (rule.force_previous ? 1 : 0));
}

}  // namespace moba
