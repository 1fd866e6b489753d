// A warp's walk over the entries of a list, whole rows at a time, with the bin of each entry that counts.
#pragma once

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/sm90/sequence_lookup.cuh"

namespace moba::cuda {

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

/// Where a lane's entries of a walk stand: entry u is number 32 * u + lane of as many whole rows as 32 * kListed
/// entries hold, at most 32.
template <int kListed>
struct Places {
  std::uint32_t rows;           // of a step
  std::uint32_t at[kListed];    // row << kSlotBits | slot; kNoRow where the step has no such entry
  std::uint32_t from[kListed];  // where it lies in the list, from the step's first: below 2^32, see kMaxListRowStride

  static constexpr std::uint32_t kNoRow = 1u << 20;

  __device__ __forceinline__ explicit Places(const InvertProblem& problem, std::uint32_t lane = threadIdx.x % 32)
      : rows(min(32u, 32 * kListed / static_cast<std::uint32_t>(problem.budget))) {
    const std::uint32_t budget = static_cast<std::uint32_t>(problem.budget);
    const std::uint32_t step_rows = 32 / budget, step_slots = 32 % budget;
    std::uint32_t row = lane / budget, slot = lane % budget;
#pragma unroll
    for (int u = 0; u < kListed; ++u) {
      at[u] = (row < rows ? row : kNoRow) << kSlotBits | slot;
      from[u] = row * static_cast<std::uint32_t>(problem.row_stride) + slot;
      row += step_rows;
      slot += step_slots;
      if (slot >= budget) {
        slot -= budget;
        ++row;
      }
    }
  }
};

/// Calls use(bins, first row) by all lanes together for the rows of a step at a time: bins[u] is that of the entry at
/// places.at[u], in the window, or -1: padding, an entry that may not be attended, or one outside of the window. Rows
/// [first, first + rows) of the slice; bins of the block rows [window, window + bins). kReport: entries that may not be
/// attended set a bit of the error word.
template <bool kReport, int kListed, class Use>
__device__ __forceinline__ void walk_list(const InvertProblem& problem, const Places<kListed>& places,
                                          std::int64_t list, std::int64_t first, std::int64_t rows, std::int32_t window,
                                          std::int32_t bins, Use&& use) {
  constexpr unsigned kAll = 0xffffffffu;
  if (rows <= 0) return;
  const std::uint32_t lane = threadIdx.x % 32;
  const std::uint32_t count = static_cast<std::uint32_t>(rows);  // below 2^16, as a segment's
  const std::int32_t* lists = problem.list + first * problem.row_stride + list * problem.list_stride;
  const auto row_of = [&](int u) { return places.at[u] >> kSlotBits; };
  const auto slot_of = [&](int u) { return places.at[u] & ((1u << kSlotBits) - 1u); };
  std::int32_t ahead[kListed];
  const std::int32_t* next = lists;
  const std::int64_t step_stride = places.rows * problem.row_stride;
  const auto load = [&](std::uint32_t at) {
    const std::uint32_t end = at < count ? (count - at) << kSlotBits : 0;
#pragma unroll
    for (int u = 0; u < kListed; ++u) ahead[u] = places.at[u] < end ? __ldg(next + places.from[u]) : -1;
    next += step_stride;
  };
  RowRun run;
  load(0);
  for (std::uint32_t at = 0; at < count; at += places.rows) {
    std::int32_t blocks[kListed], entry_bins[kListed];
#pragma unroll
    for (int u = 0; u < kListed; ++u) blocks[u] = ahead[u];
    load(at + places.rows);
    // One own block for all rows, as a rule; or each lane finds that of one row.
    if (at >= run.limit) run = run_of_row(problem, first, at);
    RowRun mine = run;
    const bool one = min(at + places.rows, count) <= run.limit;
    if (!one) mine = run_of_row(problem, first, min(at + lane, count - 1));
    bool broken = false;
#pragma unroll
    for (int u = 0; u < kListed; ++u) {
      const std::int32_t block = blocks[u];
      // The entry before: the last lane gives that of the step before to the first.
      const std::int32_t given = lane == 31 && u > 0 ? blocks[u > 0 ? u - 1 : 0] : block;
      const std::int32_t before = __shfl_sync(kAll, given, static_cast<int>(lane) - 1);  // modulo 32
      std::int32_t own = mine.own, first_bin = mine.first_bin;
      if (!one) {
        own = __shfl_sync(kAll, own, static_cast<int>(row_of(u) % 32));
        first_bin = __shfl_sync(kAll, first_bin, static_cast<int>(row_of(u) % 32));
      }
      // A list that ascends from its first slot is valid throughout. As unsigned numbers -1 and the like are above all.
      const bool past = static_cast<std::uint32_t>(block) < static_cast<std::uint32_t>(own);
      const bool ascends = slot_of(u) == 0 || static_cast<std::uint32_t>(before) < static_cast<std::uint32_t>(block);
      broken |= block != -1 && !(past && ascends);
      const std::int32_t bin = first_bin + block - window;
      entry_bins[u] = past && static_cast<std::uint32_t>(bin) < static_cast<std::uint32_t>(bins) ? bin : -1;
    }
    if (__any_sync(kAll, broken)) {
      // Anything else is judged from its beginning.
      bool wrong = false;
#pragma unroll
      for (int u = 0; u < kListed; ++u) {
        const std::int32_t own = __shfl_sync(kAll, mine.own, static_cast<int>(row_of(u) % 32));
        if (at + row_of(u) >= count) continue;
        const std::int32_t* row_list = lists + static_cast<std::int64_t>(at + row_of(u)) * problem.row_stride;
        std::int32_t highest = -1;
#pragma unroll 1
        for (std::uint32_t s = 0; s < slot_of(u); ++s) {
          const std::int32_t other = row_list[s];
          if (other < own) highest = max(highest, other);
        }
        if (blocks[u] == -1 || (blocks[u] < own && blocks[u] > highest)) continue;
        wrong = true;
        entry_bins[u] = -1;
      }
      if (kReport && wrong && problem.error_word != nullptr) {
        atomicOr(problem.error_word, static_cast<int>(kSelectionOutOfRange));
      }
    }
    use(entry_bins, at);
  }
}

}  // namespace moba::cuda
