// The best blocks of the rows of an accumulator tile, exactly, while scores stay in registers.
//
// A row's scores lie in the four lanes of a quad. Each lane keeps a queue in shared memory of the scores above the
// row's threshold; when a queue is nearly full, the threshold rises to a lower bound of the row's k-th best score so
// far, and the queues drop what is below it. A score at or below the threshold has k better ones before it (columns
// come in ascending order, and ties go to the lower), so nothing that belongs to the answer is ever dropped.
#pragma once

#include <cstdint>

#include "cuda/device/barrier.cuh"
#include "cuda/device/softmax.cuh"

namespace moba::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;
/// Columns of a row that a lane judges between two looks at the room of its queues.
inline constexpr int kPushes = 8;
/// Threads that share a set of queues: one warpgroup.
inline constexpr int kQueueThreads = 128;
/// Bytes from an entry {score, column} of a lane's queue to the next: those of the other lanes and rows lie between.
inline constexpr std::uint32_t kEntryStride = 2 * kQueueThreads * 8;
/// Sorted scores of a lane that the bound of a row is made from; four lanes hold enough of them for k up to 16.
inline constexpr int kSorted = 4;
inline constexpr int kMostBounded = 4 * kSorted;

/// Entries of a lane's queue of one row.
constexpr int queue_capacity(int k) {
  return (k + kPushes + 7) / 8 * 8;
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

/// sorted (descending) takes in one more value, not a NaN, and loses its least.
__device__ __forceinline__ void keep_sorted(float (&sorted)[kSorted], float value) {
#pragma unroll
  for (int i = kSorted - 1; i > 0; --i) sorted[i] = fmaxf(sorted[i], fminf(sorted[i - 1], value));
  sorted[0] = fmaxf(sorted[0], value);
}

/// A bitonic run of kCount values in descending order.
template <int kCount>
__device__ __forceinline__ void sort_bitonic(float* values) {
#pragma unroll
  for (int step = kCount / 2; step > 0; step /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i & step) continue;
      const float high = fmaxf(values[i], values[i + step]), low = fminf(values[i], values[i + step]);
      values[i] = high;
      values[i + step] = low;
    }
  }
}

/// The k-th largest (1 <= k <= kMostBounded) of the sorted values of the four lanes of a quad; the same in each lane.
__device__ __forceinline__ float kth_of_quad(const float (&sorted)[kSorted], int k) {
  float pair[2 * kSorted];
#pragma unroll
  for (int i = 0; i < kSorted; ++i) {
    const float other = __shfl_xor_sync(kAllLanes, sorted[kSorted - 1 - i], 1);
    pair[i] = fmaxf(sorted[i], other);
    pair[kSorted + i] = fminf(sorted[i], other);
  }
  sort_bitonic<kSorted>(pair);
  sort_bitonic<kSorted>(pair + kSorted);
  float half[2 * kSorted];  // the upper half of all values where k lies in it, or the lower
#pragma unroll
  for (int i = 0; i < 2 * kSorted; ++i) {
    const float other = __shfl_xor_sync(kAllLanes, pair[2 * kSorted - 1 - i], 2);
    half[i] = k <= 2 * kSorted ? fmaxf(pair[i], other) : fminf(pair[i], other);
  }
  sort_bitonic<2 * kSorted>(half);
  float result = half[0];
#pragma unroll
  for (int i = 1; i < 2 * kSorted; ++i) result = (k - 1) % (2 * kSorted) == i ? half[i] : result;
  return result;
}

/// The next float below; -inf stays.
__device__ __forceinline__ float below(float x) {
  if (x == minus_infinity()) return x;
  if (x == 0.0f) return __int_as_float(0x80000001u);
  const int bits = __float_as_int(x);
  return __int_as_float(x > 0.0f ? bits - 1 : bits + 1);
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

  /// Takes in a tile of 128 columns; `column` is that of scores[0]. Columns that may not be chosen hold -inf or NaN.
  __device__ __forceinline__ void take(const float (&scores)[64], std::int32_t column, bool first) {
    if (first && k <= kMostBounded) first_bound(scores);
#pragma unroll
    for (int group = 0; group < 64; group += 4 * kPushes / 2) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < kPushes / 2; ++j) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            push_above(scores[group + 4 * j + 2 * i + c], threshold[i], column + 2 * (group + 4 * j) + c, end[i]);
          }
        }
      }
      if (__any_sync(kAllLanes, end[0] - begin[0] > limit || end[1] - begin[1] > limit)) tighten();
    }
  }

  /// A threshold just below a lower bound of the k-th best score of the tile: the k-th largest of the quad's best
  /// maxima of four scores each. The scores that make the bound pass it.
  __device__ __forceinline__ void first_bound(const float (&scores)[64]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sorted[kSorted];
#pragma unroll
      for (int s = 0; s < kSorted; ++s) sorted[s] = minus_infinity();
#pragma unroll
      for (int j = 0; j < 16; j += 2) {
        const float* four = scores + 4 * j + 2 * i;
        const float highest = fmaxf(fmaxf(four[0], four[1]), fmaxf(four[4], four[5]));
        keep_sorted(sorted, fmaxf(highest, minus_infinity()));  // four NaN become -inf
      }
      threshold[i] = below(kth_of_quad(sorted, k));
    }
  }

  /// Raises the thresholds and frees at least kPushes places in every queue.
  __device__ __forceinline__ void tighten() {
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t from = i == 0 ? begin[0] : begin[1];
      std::uint32_t to = i == 0 ? end[0] : end[1];
      float bound = i == 0 ? threshold[0] : threshold[1];
      if (k <= kMostBounded) {
        float sorted[kSorted];
#pragma unroll
        for (int s = 0; s < kSorted; ++s) sorted[s] = minus_infinity();
        for (std::uint32_t at = from; at != to; at += kEntryStride) keep_sorted(sorted, load_entry(at).score);
        bound = fmaxf(bound, kth_of_quad(sorted, k));
        to = drop_below(from, to, bound);
      }
      while (to - from > limit) to = drop_worst(from, to);
      if (k > kMostBounded) {
        float least = minus_infinity();
        if (to - from >= static_cast<std::uint32_t>(k) * kEntryStride) {
          least = load_entry(from).score;
          for (std::uint32_t at = from; at != to; at += kEntryStride) least = fminf(least, load_entry(at).score);
        }
        __syncwarp();
        bound = fmaxf(bound, quad_max(least));
      }
      if (i == 0) {
        end[0] = to;
        threshold[0] = bound;
      } else {
        end[1] = to;
        threshold[1] = bound;
      }
      __syncwarp();
    }
  }

  /// Keeps the entries at or above the bound, in their order; returns the new end.
  __device__ __forceinline__ static std::uint32_t drop_below(std::uint32_t from, std::uint32_t to, float bound) {
    std::uint32_t kept = from;
    for (std::uint32_t at = from; at != to; at += kEntryStride) {
      const Entry entry = load_entry(at);
      if (entry.score >= bound) {
        store_entry(kept, entry);
        kept += kEntryStride;
      }
    }
    return kept;
  }

  /// Drops the worst entry. A queue holds more than k when this is called, so the worst is not among the row's best k.
  __device__ __noinline__ static std::uint32_t drop_worst(std::uint32_t from, std::uint32_t to) {
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

  /// After the last tile: calls use(row i, place among the row's chosen in ascending order, column) for each chosen
  /// column, by the lane that holds it; `counts[i]` is how many the row has. Queues are consumed.
  template <class Use>
  __device__ __forceinline__ void finish(int (&counts)[2], Use&& use) {
    if (k <= kMostBounded) tighten();
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t from = i == 0 ? begin[0] : begin[1];
      std::uint32_t to = i == 0 ? end[0] : end[1];
      const int lane = threadIdx.x & 3;
      const std::uint32_t quad = from - lane * 8;  // the queue of the quad's first lane
      std::uint32_t sizes[4];
      int held = 0;
#pragma unroll
      for (int other = 0; other < 4; ++other) {
        sizes[other] = __shfl_sync(kAllLanes, to - from, other, 4);
        held += static_cast<int>(sizes[other] / kEntryStride);
      }
      if (__any_sync(kAllLanes, held > k)) {
        // The entry with exactly k - 1 better ones is the least that stays.
        Entry least = {minus_infinity(), -1};
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
        __syncwarp();
        // One lane of the quad has it; the others' column is -1. Where the row holds fewer than k, all stay.
        const std::int32_t column =
            max(max(__shfl_sync(kAllLanes, least.column, 0, 4), __shfl_sync(kAllLanes, least.column, 1, 4)),
                max(__shfl_sync(kAllLanes, least.column, 2, 4), __shfl_sync(kAllLanes, least.column, 3, 4)));
        least = {quad_max(least.score), column};
        std::uint32_t kept = from;
        for (std::uint32_t at = from; at != to; at += kEntryStride) {
          const Entry entry = load_entry(at);
          if (held <= k || !better(least, entry)) {
            store_entry(kept, entry);
            kept += kEntryStride;
          }
        }
        to = kept;
        __syncwarp();
      }
      held = 0;
#pragma unroll
      for (int other = 0; other < 4; ++other) {
        sizes[other] = __shfl_sync(kAllLanes, to - from, other, 4);
        held += static_cast<int>(sizes[other] / kEntryStride);
      }
      for (std::uint32_t at = from; at != to; at += kEntryStride) {
        const std::int32_t column = load_entry(at).column;
        int place = 0;
#pragma unroll
        for (int other = 0; other < 4; ++other) {
          for (std::uint32_t step = 0; step != sizes[other]; step += kEntryStride) {
            place += load_entry(quad + other * 8 + step).column < column;
          }
        }
        use(i, place, column);
      }
      if (i == 0) {
        counts[0] = held;
      } else {
        counts[1] = held;
      }
      __syncwarp();
    }
  }
};

}  // namespace moba::cuda
