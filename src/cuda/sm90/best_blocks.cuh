// The best blocks of the rows of an accumulator tile, exactly, while scores stay in registers.
//
// A row's scores lie in the four lanes of a quad. Each lane keeps a queue in shared memory of the scores above the
// row's threshold; when a queue is nearly full, the threshold rises to a lower bound of the row's k-th best score so
// far, and the queues drop what is below it. A score at or below the threshold has k better ones before it (columns
// come in ascending order, and ties go to the lower), so nothing that belongs to the answer is ever dropped.
//
// Few warps share a multiprocessor here, so what counts is latency: entries are read four at a time, and where
// registers allow, the two rows of a thread go side by side.
#pragma once

#include <cstdint>

#include "cuda/device/barrier.cuh"
#include "cuda/device/quad.cuh"
#include "cuda/sm90/sorted_scores.cuh"

namespace moba::cuda {

/// Columns of a row that a lane judges between two looks at the room of its queues.
inline constexpr int kPushes = 8;
/// Threads that share a set of queues: one warpgroup.
inline constexpr int kQueueThreads = 128;
/// Bytes from an entry {score, column} of a lane's queue to the next: those of the other lanes and rows lie between.
inline constexpr std::uint32_t kEntryStride = 2 * kQueueThreads * 8;
/// Entries read at a time.
inline constexpr int kBatch = 4;

/// Entries of a lane's queue of one row: k and kPushes must fit; with a few more, queues are full less often.
constexpr int queue_capacity(int k) {
  constexpr int kLeast = 24;
  const int needed = (k + kPushes + 7) / 8 * 8;
  return needed < kLeast ? kLeast : needed;
}
constexpr int queue_bytes(int k) {
  return queue_capacity(k) * static_cast<int>(kEntryStride);
}

struct Entry {
  float score;
  std::int32_t column;
};

__device__ __forceinline__ Entry load_entry(std::uint32_t address) {
  Entry entry;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=f"(entry.score), "=r"(entry.column) : "r"(address) : "memory");
  return entry;
}
__device__ __forceinline__ void store_entry(std::uint32_t address, const Entry& entry) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "f"(entry.score), "r"(entry.column) : "memory");
}
__device__ __forceinline__ std::int32_t load_word(std::uint32_t address) {
  std::int32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}
__device__ __forceinline__ void store_word(std::uint32_t address, std::int32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}
__device__ __forceinline__ bool better(const Entry& a, const Entry& b) {
  return a.score > b.score || (a.score == b.score && a.column < b.column);
}

/// Where `score` is above the threshold: writes the entry at the end of the queue. Predicated, never a branch.
__device__ __forceinline__ void push_above(float score, float threshold, std::int32_t column, std::uint32_t& end) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "setp.gt.f32 p, %1, %2;\n"
      "@p st.shared.b32 [%0], %1;\n"
      "@p st.shared.b32 [%0 + 4], %3;\n"
      "@p add.u32 %0, %0, %4;\n}\n"
      : "+r"(end)
      : "f"(score), "f"(threshold), "r"(column), "n"(kEntryStride)
      : "memory");
}

/// The choice of one warp for its 16 rows (two of each thread), over one item.
struct BestBlocks {
  std::uint32_t begin[2];  // shared addresses of the lane's queues of its two rows
  std::uint32_t end[2];
  std::uint32_t limit;  // bytes of a queue beyond which the next kPushes may not fit
  float threshold[2];
  int k;

  /// `queues`: shared address of the warpgroup's queues; `thread`: of the warpgroup.
  __device__ __forceinline__ void start(std::uint32_t queues, int thread, int k_in) {
    k = k_in;
    limit = static_cast<std::uint32_t>(queue_capacity(k) - kPushes) * kEntryStride;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      begin[i] = end[i] = queues + (i * kQueueThreads + thread) * 8;
      threshold[i] = minus_infinity();
    }
  }

  /// Takes in a tile of 128 columns, of which the first `columns` count; `column` is that of scores[0]. Columns that
  /// may not be chosen hold -inf or NaN.
  __device__ __forceinline__ void take(const float (&scores)[64], std::int32_t column, int columns, bool first) {
    if (first && k <= kFew) {
      first_bound<kFew>(scores, columns);
    } else if (first && k <= kMostBounded) {
      first_bound<kSorted>(scores, columns);
    }
    // A loop with a choice inside, so that there is one copy of tighten() and not one for each group.
#pragma unroll 1
    for (int group = 0; group < 4 && 32 * group < columns; ++group) {
      switch (group) {
        case 0: push_group<0>(scores, column); break;
        case 1: push_group<1>(scores, column); break;
        case 2: push_group<2>(scores, column); break;
        default: push_group<3>(scores, column); break;
      }
      if (__any_sync(kAllLanes, end[0] - begin[0] > limit || end[1] - begin[1] > limit)) tighten();
    }
  }

  /// After the last tile: calls use(row i, place among the row's chosen in ascending order, column) for each chosen
  /// column; `counts[i]` is how many the row has. Queues are consumed.
  template <class Use>
  __device__ __forceinline__ void finish(int (&counts)[2], Use&& use) {
    if (k <= kMostBounded) {
      float bound[2];
      if (k <= kFew) {
        bounds<2, kFew>(begin, end, bound);
      } else {
        bounds<2, kSorted>(begin, end, bound);
      }
      drop_below<2>(begin, end, bound);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) counts[i] = held_of_quad(end[i] - begin[i]);
    if (__any_sync(kAllLanes, counts[0] > k || counts[1] > k)) {
#pragma unroll 1
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t kept =
            keep_best(i == 0 ? begin[0] : begin[1], i == 0 ? end[0] : end[1], i == 0 ? counts[0] : counts[1]);
        if (i == 0) {
          end[0] = kept;
        } else {
          end[1] = kept;
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) counts[i] = min(counts[i], k);
    }
    if (k <= kMostBounded) {
      use_lists(counts, use);
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        use_queues(begin[i], end[i], [&](int place, std::int32_t column) { use(i, place, column); });
    }
    __syncwarp();
  }

 private:
  /// The kPushes columns that the lane has of each row in the 32 columns of a group.
  template <int kGroup>
  __device__ __forceinline__ void push_group(const float (&scores)[64], std::int32_t column) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = kGroup * kPushes / 2; j < (kGroup + 1) * kPushes / 2; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) push_above(scores[4 * j + 2 * i + c], threshold[i], column + 8 * j + c, end[i]);
      }
    }
  }

  /// A threshold just below a lower bound of the k-th best score of the tile: the k-th largest of the maxima of four
  /// scores each. The scores that make the bound pass it.
  template <int kCount>
  __device__ __forceinline__ void first_bound(const float (&scores)[64], int columns) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sorted[kCount];
#pragma unroll
      for (int s = 0; s < kCount; ++s) sorted[s] = minus_infinity();
#pragma unroll
      for (int s = 0; s < 8; ++s) {
        if (16 * s >= columns) continue;
        const float* four = scores + 8 * s + 2 * i;
        // Maxima pass over a NaN; four of them become -inf.
        const float high = fmaxf(fmaxf(fmaxf(four[0], four[1]), fmaxf(four[4], four[5])), minus_infinity());
        if constexpr (kCount == 8) {
          sorted[s] = high;
        } else {
          keep_sorted(sorted, high);
        }
      }
      if constexpr (kCount == 8) sort_eight(sorted);
      threshold[i] = below(kth_of_quad(sorted, k));
    }
  }

  /// Raises the thresholds and frees at least kPushes places in every queue.
  __device__ __forceinline__ void tighten() {
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t from[1] = {i == 0 ? begin[0] : begin[1]};
      std::uint32_t to[1] = {i == 0 ? end[0] : end[1]};
      float bound[1] = {minus_infinity()};
      const float before = i == 0 ? threshold[0] : threshold[1];
      if (k <= kMostBounded) {
        if (k <= kFew) {
          bounds<1, kFew>(from, to, bound);
        } else {
          bounds<1, kSorted>(from, to, bound);
        }
        bound[0] = fmaxf(bound[0], before);
        drop_below<1>(from, to, bound);
      }
      while (to[0] - from[0] > limit) to[0] = drop_worst(from[0], to[0]);
      if (k > kMostBounded) {
        float least = minus_infinity();
        if (to[0] - from[0] >= static_cast<std::uint32_t>(k) * kEntryStride) {
          least = load_entry(from[0]).score;
          for (std::uint32_t at = from[0]; at != to[0]; at += kEntryStride) least = fminf(least, load_entry(at).score);
        }
        __syncwarp();
        bound[0] = fmaxf(before, quad_max(least));
      }
      if (i == 0) {
        end[0] = to[0];
        threshold[0] = bound[0];
      } else {
        end[1] = to[0];
        threshold[1] = bound[0];
      }
      __syncwarp();
    }
  }

  /// Lower bounds of the k-th best scores that the quads hold, of kRows rows; the very scores for k <= kCount.
  template <int kRows, int kCount>
  __device__ __forceinline__ void bounds(const std::uint32_t* from, const std::uint32_t* to,
                                         float (&bound)[kRows]) const {
    float sorted[kRows][kCount];
    std::uint32_t longest = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      longest = max(longest, to[i] - from[i]);
#pragma unroll
      for (int s = 0; s < kCount; ++s) sorted[i][s] = minus_infinity();
    }
    longest = __reduce_max_sync(kAllLanes, longest);
#pragma unroll 1
    for (std::uint32_t step = 0; step < longest; step += kBatch * kEntryStride) {
      float scores[kRows][kBatch];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int e = 0; e < kBatch; ++e) {
          const std::uint32_t at = step + e * kEntryStride;
          scores[i][e] = at < to[i] - from[i] ? load_entry(from[i] + at).score : minus_infinity();
        }
      }
#pragma unroll
      for (int e = 0; e < kBatch; ++e) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) keep_sorted(sorted[i], scores[i][e]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) bound[i] = kth_of_quad(sorted[i], k);
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
    // The entry with exactly k - 1 better ones is the least that stays.
    Entry least = {minus_infinity(), -1};
    if (held > k) {
      for (std::uint32_t at = from; at != to; at += kEntryStride) {
        const Entry entry = load_entry(at);
        int rank = 0;
#pragma unroll
        for (int other = 0; other < 4; ++other) {
          for (std::uint32_t step = 0; step != sizes[other]; step += kEntryStride) {
            rank += better(load_entry(quad + other * 8 + step), entry);
          }
        }
        if (rank == k - 1) least = entry;
      }
    }
    __syncwarp();
    // One lane of the quad has it; the columns of the others are -1.
    std::int32_t column = max(least.column, __shfl_xor_sync(kAllLanes, least.column, 1));
    column = max(column, __shfl_xor_sync(kAllLanes, column, 2));
    least = {quad_max(least.score), column};
    std::uint32_t kept = from;
    if (held > k) {
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

  /// finish() for k <= kMostBounded: the quad lays its columns in one row of words, behind what the queues hold now,
  /// and each lane finds the places of every fourth.
  template <class Use>
  __device__ __forceinline__ void use_lists(const int (&counts)[2], Use&& use) const {
    constexpr int kEach = kMostBounded / 4;
    const int lane = threadIdx.x & 3;
    std::uint32_t list[2];
    std::uint32_t longest = 0;
    int at[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      list[i] = begin[i] - lane * 8 + static_cast<std::uint32_t>(queue_capacity(k) - kEach) * kEntryStride;
      const std::uint32_t bytes = end[i] - begin[i];
      longest = max(longest, bytes);
      const int mine = static_cast<int>(bytes / kEntryStride);
      const int next = __shfl_xor_sync(kAllLanes, mine, 1);
      const int pair = mine + next;
      const int other = __shfl_xor_sync(kAllLanes, pair, 2);
      at[i] = (lane & 1 ? next : 0) + (lane & 2 ? other : 0);
    }
    longest = __reduce_max_sync(kAllLanes, longest);
    for (std::uint32_t step = 0; step < longest; step += kEntryStride) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (step < end[i] - begin[i]) store_word(word(list[i], at[i]++), load_word(begin[i] + step + 4));
      }
    }
    __syncwarp();
    std::int32_t mine[2][kEach] = {};
    int place[2][kEach] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int e = 0; e < kEach; ++e)
        mine[i][e] = 4 * e + lane < counts[i] ? load_word(word(list[i], 4 * e + lane)) : 0;
    }
#pragma unroll
    for (int t = 0; t < kMostBounded; ++t) {
      if (t >= k) break;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int32_t other = t < counts[i] ? load_word(word(list[i], t)) : 0x7fffffff;
#pragma unroll
        for (int e = 0; e < kEach; ++e) place[i][e] += other < mine[i][e];
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        if (4 * e + lane < counts[i]) use(i, place[i][e], mine[i][e]);
      }
    }
  }
  __device__ __forceinline__ static std::uint32_t word(std::uint32_t list, int index) {
    return list + static_cast<std::uint32_t>(index & 3) * 8 + static_cast<std::uint32_t>(index >> 2) * kEntryStride;
  }

  /// finish() for any k: each lane finds the places of its own entries.
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
};

}  // namespace moba::cuda
