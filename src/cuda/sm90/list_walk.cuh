// A warp's walk over the entries of a list, in order of (row, slot), with the bin of each entry that counts.
#pragma once

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/sm90/sequence_lookup.cuh"

namespace moba::cuda {

/// Entries of a lane at a time; loads of as many more are under way.
inline constexpr int kListed = 8;

struct Listed {
  std::int32_t bin;   // in the window; -1: padding, an entry that may not be attended, or one outside of the window
  std::uint32_t at;   // row, of at most 32 at a time, << kSlotBits | slot

  __device__ __forceinline__ std::uint32_t row() const { return at >> kSlotBits; }
  __device__ __forceinline__ std::uint32_t slot() const { return at & ((1u << kSlotBits) - 1u); }
};

/// What is known of a row, and of those after it: the own block does not change before `limit`.
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

/// Calls use(entries, first row) by all lanes together for as many whole rows at a time as 32 * kListed entries hold, at
/// most 32, counted from the first: lane l has in entries[u] the entry number 32 * u + l. Rows [first, first + rows) of
/// the slice; bins of the block rows [window, window + bins). kReport: entries that may not be attended set a bit of the
/// error word.
template <bool kReport, class Use>
__device__ __forceinline__ void walk_list(const InvertProblem& problem, std::int64_t list, std::int64_t first,
                                          std::int64_t rows, std::int32_t window, std::int32_t bins, Use&& use) {
  constexpr unsigned kAll = 0xffffffffu;
  if (rows <= 0) return;
  const std::uint32_t lane = threadIdx.x % 32, budget = static_cast<std::uint32_t>(problem.budget);
  const std::uint32_t count = static_cast<std::uint32_t>(rows);  // below 2^16, as a segment's
  const std::uint32_t chunk = min(32u, 32 * kListed / budget);
  const std::int32_t* lists = problem.list + first * problem.row_stride + list * problem.list_stride;
  Listed entries[kListed];
  std::int32_t ahead[kListed];
#pragma unroll
  for (int u = 0; u < kListed; ++u) {
    const std::uint32_t number = 32 * u + lane, row = number / budget;
    entries[u].at = (row < chunk ? row : count) << kSlotBits | (number - row * budget);  // row `count` is none at all
  }
  const auto load = [&](std::uint32_t at) {
#pragma unroll
    for (int u = 0; u < kListed; ++u) {
      const bool there = at + entries[u].row() < count;
      ahead[u] = there ? __ldg(lists + (at + entries[u].row()) * problem.row_stride + entries[u].slot()) : -1;
    }
  };
  RowRun run;
  load(0);
  for (std::uint32_t at = 0; at < count; at += chunk) {
    std::int32_t blocks[kListed];
#pragma unroll
    for (int u = 0; u < kListed; ++u) blocks[u] = ahead[u];
    load(at + chunk);
    // One own block for all rows, as a rule; or each lane finds that of one row.
    if (at >= run.limit) run = run_of_row(problem, first, at);
    RowRun mine = run;
    const bool one = min(at + chunk, count) <= run.limit;
    if (!one) mine = run_of_row(problem, first, min(at + lane, count - 1));
    bool broken = false;
#pragma unroll
    for (int u = 0; u < kListed; ++u) {
      const std::int32_t block = blocks[u];
      // The entry before: the last lane gives that of the step before to the first.
      const std::int32_t given = lane == 31 && u > 0 ? blocks[u > 0 ? u - 1 : 0] : block;
      const std::int32_t before = __shfl_sync(kAll, given, (lane + 31) % 32);
      std::int32_t own = mine.own, first_bin = mine.first_bin;
      if (!one) {
        own = __shfl_sync(kAll, own, static_cast<int>(entries[u].row() % 32));
        first_bin = __shfl_sync(kAll, first_bin, static_cast<int>(entries[u].row() % 32));
      }
      // A list that ascends from its first slot is valid throughout. As unsigned numbers -1 and the like are above all.
      const bool past = static_cast<std::uint32_t>(block) < static_cast<std::uint32_t>(own);
      const bool ascends =
          entries[u].slot() == 0 || static_cast<std::uint32_t>(before) < static_cast<std::uint32_t>(block);
      broken |= block != -1 && !(past && ascends);
      const std::int32_t bin = first_bin + block - window;
      entries[u].bin = past && static_cast<std::uint32_t>(bin) < static_cast<std::uint32_t>(bins) ? bin : -1;
    }
    if (__any_sync(kAll, broken)) {
      // Anything else is judged from its beginning.
      bool wrong = false;
#pragma unroll 1
      for (std::uint32_t u = 0; u < kListed; ++u) {
        const std::uint32_t number = 32 * u + lane, row = number / budget;
        const std::int32_t own = __shfl_sync(kAll, mine.own, static_cast<int>(row % 32));
        if (row >= chunk || at + row >= count) continue;
        const std::int32_t* row_list = lists + (at + row) * problem.row_stride;
        std::int32_t highest = -1;
        for (std::uint32_t s = 0; s < number - row * budget; ++s) {
          const std::int32_t other = row_list[s];
          if (other < own) highest = max(highest, other);
        }
        const std::int32_t block = row_list[number - row * budget];
        if (block == -1 || (block < own && block > highest)) continue;
        wrong = true;
#pragma unroll
        for (int v = 0; v < kListed; ++v) {
          if (v == static_cast<int>(u)) entries[v].bin = -1;
        }
      }
      if (kReport && wrong && problem.error_word != nullptr) {
        atomicOr(problem.error_word, static_cast<int>(kSelectionOutOfRange));
      }
    }
    use(entries, at);
  }
}

}  // namespace moba::cuda
