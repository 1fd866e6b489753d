// Queues of the scores that may still belong to the best k blocks of a row, for the rows of an accumulator tile.
//
// A row's scores lie in the four lanes of a quad. Each lane keeps a queue in shared memory of the scores above the
// row's threshold; between tiles and when a queue is full, the threshold rises to a lower bound of the row's k-th best
// score so far, and the queues drop what is below it. A score at or below the threshold has k better ones before it
// (columns come in ascending order, and ties go to the lower), so nothing that belongs to the answer is ever dropped.
#pragma once

#include <cstdint>

#include "cuda/device/quad.cuh"
#include "cuda/sm90/entry.cuh"
#include "cuda/sm90/score_filter.cuh"
#include "cuda/sm90/sorted_scores.cuh"

namespace moba::cuda {

/// Threads that share a set of queues: one warpgroup.
inline constexpr int kQueueThreads = 128;
/// Bytes from an entry {score, column} of a lane's queue to the next: those of the other lanes and rows lie between.
inline constexpr std::uint32_t kEntryStride = 2 * kQueueThreads * 8;
/// Entries read at a time.
inline constexpr int kBatch = 4;

/// The queues of one warp for its 16 rows (two of each thread), over one item; k <= kMost.
template <int kMost, int kTileColumns>
class ScoreQueues {
 public:
  static constexpr int kColumns = kTileColumns;
  /// Entries of a lane's queue of one row: k must fit and one more; with a few more, queues are full less often.
  static constexpr int capacity(int k) { return kMost <= kSorted ? kSorted + 4 : k + 5; }
  /// Bytes of a warpgroup's queues.
  static constexpr int queue_bytes(int k) { return capacity(k) * static_cast<int>(kEntryStride); }

  /// `queues`: shared address of the warpgroup's queues; `stage`: of the lane, see sweep(); `thread`: of the warpgroup.
  __device__ __forceinline__ void start(std::uint32_t queues, std::uint32_t stage, int thread, int k) {
    k_ = k;
    stage_ = stage;
    limit_ = static_cast<std::uint32_t>(capacity(k) - 1) * kEntryStride;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      begin_[i] = end_[i] = queues + (i * kQueueThreads + thread) * 8;
      threshold_[i] = minus_infinity();
    }
  }

  /// Whether settle() is worth its time before tile `index` is taken in, while its scores are not there yet: it raises
  /// the thresholds to what the tiles so far allow. After the second, fourth, eighth ... tile.
  __device__ __forceinline__ bool settles(int index) const {
    return index >= 2 && (index & (index - 1)) == 0 && bounded();
  }

  /// Takes in a tile.
  __device__ __forceinline__ void take(const float (&scores)[kColumns / 2], const TileColumns& tile, int index) {
    if (index == 0 && bounded()) {
      float maxima[2][kSorted];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        best_maxima<kColumns>(scores, tile, i, maxima[i]);
        sort_eight(maxima[i]);
      }
      if constexpr (kBounded <= kSorted) {
        kth_of_quads(maxima, k_, threshold_);
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) threshold_[i] = kth_of_quad<kBounded>(maxima[i], k_);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) threshold_[i] = below(threshold_[i]);
    }
    std::uint32_t mask[2];
    passing<kColumns>(scores, threshold_, tile, mask);
    bool crowded = false;
    sweep<kColumns>(
        scores, mask, stage_, tile.first,
        [&](const int(&counts)[2]) {
          bool full = false;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            full |= end_[i] - begin_[i] + static_cast<std::uint32_t>(counts[i]) * kEntryStride > limit_ + kEntryStride;
          }
          return crowded = __any_sync(kAllLanes, full);
        },
        [&](const float(&score)[2], const std::int32_t(&column)[2]) {
          if (crowded && __any_sync(kAllLanes, end_[0] - begin_[0] > limit_ || end_[1] - begin_[1] > limit_))
            tighten(false);
#pragma unroll
          for (int i = 0; i < 2; ++i) push_above<kEntryStride>(score[i], threshold_[i], column[i], end_[i]);
        });
  }

 protected:
  static constexpr int kBounded = kMost < kMostBounded ? kMost : kMostBounded;
  /// Whether a bound of the k-th best score comes from sorted runs.
  __device__ __forceinline__ bool bounded() const {
    return kMost <= kMostBounded || k_ <= kMostBounded;
  }

  /// Raises the thresholds and frees at least one place in every queue. `between_tiles`: not in the middle of one,
  /// where a column may be still to come that is lower than one that has come, with the score of the new bound.
  __device__ __forceinline__ void tighten(bool between_tiles) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Tightened row = tighten_row(begin_[i], end_[i], limit_, k_);
      end_[i] = row.end;
      threshold_[i] = fmaxf(threshold_[i], between_tiles ? row.bound : below(row.bound));
    }
  }

  struct Tightened {
    std::uint32_t end;
    float bound;
  };
  /// Of one row. Not inlined: it is rare, and would stand in the middle of what is not.
  __device__ __noinline__ static Tightened tighten_row(std::uint32_t from, std::uint32_t to, std::uint32_t limit,
                                                       int k) {
    ScoreQueues queues;
    queues.k_ = k;
    float bound[1] = {minus_infinity()};
    if (queues.bounded()) {
      queues.template bounds<1>(&from, &to, bound);
      drop_below<1>(&from, &to, bound);
    }
    while (to - from > limit) to = drop_worst(from, to);
    if (!queues.bounded()) {
      float least = minus_infinity();
      if (to - from >= static_cast<std::uint32_t>(k) * kEntryStride) {
        least = load_entry(from).score;
        for (std::uint32_t at = from; at != to; at += kEntryStride) least = fminf(least, load_entry(at).score);
      }
      __syncwarp();
      bound[0] = quad_max(least);
    }
    __syncwarp();
    return {to, bound[0]};
  }

  /// Lower bounds of the k-th best scores that the quads hold, of kRows rows; the very scores for k_ <= kSorted.
  template <int kRows>
  __device__ __forceinline__ void bounds(const std::uint32_t* from, const std::uint32_t* to,
                                         float (&bound)[kRows]) const {
    float sorted[kRows][kSorted];
    std::uint32_t longest = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      longest = max(longest, to[i] - from[i]);
#pragma unroll
      for (int e = 0; e < kSorted; ++e) sorted[i][e] = score_at(from[i], to[i], e * kEntryStride);
      sort_eight(sorted[i]);
    }
    longest = __reduce_max_sync(kAllLanes, longest);
#pragma unroll 1
    for (std::uint32_t step = kSorted * kEntryStride; step < longest; step += kBatch * kEntryStride) {
      float scores[kRows][kBatch];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int e = 0; e < kBatch; ++e) scores[i][e] = score_at(from[i], to[i], step + e * kEntryStride);
      }
#pragma unroll
      for (int e = 0; e < kBatch; ++e) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) keep_sorted(sorted[i], scores[i][e]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) bound[i] = kth_of_quad<kBounded>(sorted[i], k_);
  }

  /// -inf behind the end of a queue.
  __device__ __forceinline__ static float score_at(std::uint32_t from, std::uint32_t to, std::uint32_t bytes) {
    return bytes < to - from ? load_entry(from + bytes).score : minus_infinity();
  }

  /// Keeps the entries at or above the bound, in their order, and moves the ends.
  template <int kRows>
  __device__ __forceinline__ static void drop_below(const std::uint32_t* from, std::uint32_t* to,
                                                    const float (&bound)[kRows]) {
    std::uint32_t longest = 0, kept[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      longest = max(longest, to[i] - from[i]);
      kept[i] = from[i];
    }
    longest = __reduce_max_sync(kAllLanes, longest);
#pragma unroll 1
    for (std::uint32_t step = 0; step < longest; step += kBatch * kEntryStride) {
      Entry entries[kRows][kBatch];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int e = 0; e < kBatch; ++e) {
          const std::uint32_t at = step + e * kEntryStride;
          entries[i][e] = at < to[i] - from[i] ? load_entry(from[i] + at) : Entry{__int_as_float(0x7fffffff), 0};
        }
      }
#pragma unroll
      for (int e = 0; e < kBatch; ++e) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          if (entries[i][e].score >= bound[i]) {  // never for the NaN behind the end
            store_entry(kept[i], entries[i][e]);
            kept[i] += kEntryStride;
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) to[i] = kept[i];
  }

  /// Drops the worst entry. A queue holds more than k when this is called, so the worst is not among the row's best k.
  __device__ __forceinline__ static std::uint32_t drop_worst(std::uint32_t from, std::uint32_t to) {
    std::uint32_t worst_at = from;
    Entry worst = load_entry(from);
    for (std::uint32_t at = from + kEntryStride; at != to; at += kEntryStride) {
      const Entry entry = load_entry(at);
      if (better(worst, entry)) {
        worst = entry;
        worst_at = at;
      }
    }
    for (std::uint32_t at = worst_at + kEntryStride; at != to; at += kEntryStride) {
      store_entry(at - kEntryStride, load_entry(at));
    }
    return to - kEntryStride;
  }

  /// How many entries the quad has where this lane has so many bytes of them.
  __device__ __forceinline__ static int held_of_quad(std::uint32_t bytes) {
    int held = static_cast<int>(bytes / kEntryStride);
    held += __shfl_xor_sync(kAllLanes, held, 1);
    return held + __shfl_xor_sync(kAllLanes, held, 2);
  }

  /// Exactly the row's best k of the quad's entries, where it holds more; returns the lane's new end.
  __device__ __forceinline__ std::uint32_t keep_best(std::uint32_t from, std::uint32_t to, int held) const {
    const std::uint32_t quad = from - (threadIdx.x & 3) * 8;  // the queue of the quad's first lane
    std::uint32_t sizes[4];
#pragma unroll
    for (int other = 0; other < 4; ++other) sizes[other] = __shfl_sync(kAllLanes, to - from, other, 4);
    // The entry with exactly k_ - 1 better ones is the least that stays.
    Entry least = {minus_infinity(), -1};
    if (held > k_) {
      for (std::uint32_t at = from; at != to; at += kEntryStride) {
        const Entry entry = load_entry(at);
        int rank = 0;
#pragma unroll
        for (int other = 0; other < 4; ++other) {
          for (std::uint32_t step = 0; step != sizes[other]; step += kEntryStride) {
            rank += better(load_entry(quad + other * 8 + step), entry);
          }
        }
        if (rank == k_ - 1) least = entry;
      }
    }
    __syncwarp();
    // One lane of the quad has it; the columns of the others are -1.
    std::int32_t column = max(least.column, __shfl_xor_sync(kAllLanes, least.column, 1));
    column = max(column, __shfl_xor_sync(kAllLanes, column, 2));
    least = {quad_max(least.score), column};
    std::uint32_t kept = from;
    if (held > k_) {
      for (std::uint32_t at = from; at != to; at += kEntryStride) {
        const Entry entry = load_entry(at);
        if (!better(least, entry)) {
          store_entry(kept, entry);
          kept += kEntryStride;
        }
      }
    } else {
      kept = to;
    }
    __syncwarp();
    return kept;
  }

  /// Where the queues of a row hold more than k: exactly the best k. `counts`: what the quads hold, then keep.
  __device__ __forceinline__ void keep_best(int (&counts)[2]) {
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t kept =
          keep_best(i == 0 ? begin_[0] : begin_[1], i == 0 ? end_[0] : end_[1], i == 0 ? counts[0] : counts[1]);
      if (i == 0) {
        end_[0] = kept;
      } else {
        end_[1] = kept;
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) counts[i] = min(counts[i], k_);
  }

  /// Calls use(place, column) for the entries of a queue: each lane finds the places of its own entries.
  template <class Use>
  __device__ __forceinline__ static void use_queues(std::uint32_t from, std::uint32_t to, Use&& use) {
    const std::uint32_t quad = from - (threadIdx.x & 3) * 8;
    std::uint32_t sizes[4];
#pragma unroll
    for (int other = 0; other < 4; ++other) sizes[other] = __shfl_sync(kAllLanes, to - from, other, 4);
    for (std::uint32_t at = from; at != to; at += kEntryStride) {
      const std::int32_t column = load_entry(at).column;
      int place = 0;
#pragma unroll
      for (int other = 0; other < 4; ++other) {
        for (std::uint32_t step = 0; step != sizes[other]; step += kEntryStride) {
          place += load_word(quad + other * 8 + step + 4) < column;
        }
      }
      use(place, column);
    }
  }

  std::uint32_t begin_[2];  // shared addresses of the lane's queues of its two rows
  std::uint32_t end_[2];
  std::uint32_t limit_;  // bytes of a queue beyond which nothing fits
  std::uint32_t stage_;
  float threshold_[2];
  int k_;
};

}  // namespace moba::cuda
