// A warp's walk over the entries of a list, in order of (row, slot), with the bin of each entry that counts.
#pragma once

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/sm90/sequence_lookup.cuh"

namespace moba::cuda {

/// Entries of a lane at a time; loads of as many more are under way.
inline constexpr int kListed = 8;

struct Listed {
  std::int32_t bin;    // in the window; -1: padding, an entry that may not be attended, or one outside of the window
  std::uint32_t row;   // counted from the walk's first
  std::uint32_t slot;
};

/// What a lane knows of its row, kept while rows go up: the own block does not change before `limit`.
struct RowRun {
  std::uint32_t limit = 0;  // rows of the walk
  std::int32_t own = 0;     // own block; 0 where no block is past
  std::int32_t first_bin = 0;
};

__device__ __forceinline__ RowRun run_of_row(const InvertProblem& problem, std::int64_t first, std::uint32_t row) {
  const std::int64_t packed = problem.first_row + first + row;
  const std::int64_t s = sequence_of_row(problem.sequences, problem.sequence_count, packed);
  if (s < 0) return {row + 1, 0, 0};
  const SequenceSpan sequence = problem.sequences[s];
  const std::int64_t position = packed - sequence.q_begin + sequence.k_length - sequence.q_length;
  const std::int32_t own = position < 0 ? 0 : problem.divide.quotient(static_cast<std::int32_t>(position));
  const std::int64_t to_next =
      min((own + 1) * problem.block_size - position, sequence.q_begin + sequence.q_length - packed);
  return {row + static_cast<std::uint32_t>(min(to_next, kMaxSliceRows)), own,
          problem.divide.quotient(static_cast<std::int32_t>(sequence.k_begin)) + static_cast<std::int32_t>(s)};
}

/// Calls use(entries, first row) by all lanes together for at most 32 rows at a time, counted from the first row: lane l
/// has in entries[u] the entry number 32 * u + l. Rows [first, first + rows) of the slice; bins of the block rows
/// [window, window + bins). kReport: entries that may not be attended set a bit of the error word.
template <bool kReport, class Use>
__device__ __forceinline__ void walk_list(const InvertProblem& problem, std::int64_t list, std::int64_t first,
                                          std::int64_t rows, std::int32_t window, std::int32_t bins, Use&& use) {
  constexpr unsigned kAll = 0xffffffffu;
  if (rows <= 0) return;
  const std::uint32_t lane = threadIdx.x % 32, budget = static_cast<std::uint32_t>(problem.budget);
  const std::uint32_t count = static_cast<std::uint32_t>(rows) * budget;  // below 2^32: see kMaxSliceRows
  const std::uint32_t steps = min(budget, static_cast<std::uint32_t>(kListed));  // so many make at most 32 rows
  const std::int32_t* lists = problem.list + first * problem.row_stride + list * problem.list_stride;
  const std::uint32_t step_rows = 32 / budget, step_slots = 32 % budget;
  const auto advance = [&](std::uint32_t& row, std::uint32_t& slot) {
    row += step_rows;
    slot += step_slots;
    if (slot >= budget) {
      slot -= budget;
      ++row;
    }
  };
  std::uint32_t row = lane / budget, slot = lane % budget;
  std::uint32_t load_row = row, load_slot = slot;
  std::int32_t ahead[kListed];
  const auto load = [&](std::uint32_t at) {
#pragma unroll
    for (int u = 0; u < kListed; ++u) {
      ahead[u] = -1;
      if (u >= steps || at >= count) continue;
      if (count - at > 32 * u + lane) ahead[u] = __ldg(lists + load_row * problem.row_stride + load_slot);
      advance(load_row, load_slot);
    }
  };
  RowRun run;
  std::int32_t carry = -1;     // the entry before the step's first
  std::uint32_t bad_row = kAll;  // the last row with an entry that breaks the rule
  load(0);
  for (std::uint32_t at = 0; at < count; at += 32 * steps) {
    std::int32_t blocks[kListed];
#pragma unroll
    for (int u = 0; u < kListed; ++u) blocks[u] = ahead[u];
    load(at + 32 * steps);
    const std::uint32_t first_row = __shfl_sync(kAll, row, 0);
    Listed entries[kListed];
#pragma unroll
    for (int u = 0; u < kListed; ++u) {
      entries[u] = {-1, row, slot};
      if (u >= steps) continue;
      const std::int32_t block = blocks[u];
      std::int32_t before = __shfl_up_sync(kAll, block, 1);
      if (lane == 0) before = carry;
      carry = __shfl_sync(kAll, block, 31);
      if (row >= run.limit && block != -1) run = run_of_row(problem, first, row);
      // A list that ascends from its first slot is valid throughout; anything else is judged from its beginning.
      bool valid = block >= 0 && block < run.own;
      const bool plain = block == -1 || (valid && (slot == 0 || (before >= 0 && before < block)));
      if (__any_sync(kAll, !plain || row == bad_row)) {
        const std::int32_t* row_list = lists + row * problem.row_stride;
        std::int32_t highest = -1;
        for (std::uint32_t s = 0; block != -1 && s < slot; ++s) {
          const std::int32_t other = row_list[s];
          if (other < run.own) highest = max(highest, other);
        }
        valid = valid && block > highest;
        if (kReport && !valid && block != -1 && problem.error_word != nullptr) {
          atomicOr(problem.error_word, static_cast<int>(kSelectionOutOfRange));
        }
        const std::uint32_t worst = __reduce_max_sync(kAll, plain ? 0u : row + 1);
        if (worst != 0) bad_row = worst - 1;
      }
      const std::int32_t bin = run.first_bin + block - window;
      if (valid && static_cast<std::uint32_t>(bin) < static_cast<std::uint32_t>(bins)) entries[u].bin = bin;
      advance(row, slot);
    }
    use(entries, first_row);
  }
}

}  // namespace moba::cuda
