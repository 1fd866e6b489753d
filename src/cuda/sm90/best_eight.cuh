// The best blocks of the rows of an accumulator tile, exactly, for k up to 8: a lane's queue fits its registers, so
// what is done between tiles and at the end is one read of the queues and networks.
#pragma once

#include <cstdint>

#include "cuda/device/copy.cuh"
#include "cuda/sm90/score_queues.cuh"

namespace moba::cuda {

/// The choice of one warp for its 16 rows (two of each thread), over one item. See BestBlocks.
class BestEight : public ScoreQueues<kSorted, 128> {
 public:
  static constexpr int kGroups = 3;  // warpgroups of a block of threads
  __device__ __forceinline__ void settle() {
    if (few()) {
      settle_of<kSorted>();
    } else {
      settle_of<kEntries>();
    }
  }

  template <class Use>
  __device__ __forceinline__ void finish(int (&counts)[2], Use&& use) {
    if (few()) {
      finish_of<kSorted>(counts, use);
    } else {
      finish_of<kEntries>(counts, use);
    }
  }

 private:
  static constexpr int kEntries = capacity(kSorted);
  static constexpr std::int32_t kNone = 0x7fffffff;

  /// Whether no queue of the warp has more than kSorted entries, as a rule.
  __device__ __forceinline__ bool few() const {
    const std::uint32_t longest = max(end_[0] - begin_[0], end_[1] - begin_[1]);
    return !__any_sync(kAllLanes, longest > kSorted * kEntryStride);
  }

  template <int kCount>
  __device__ __forceinline__ void settle_of() {
    Entry entries[2][kCount];
    kth(entries, threshold_);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float bound = below(threshold_[i]);
      end_[i] = begin_[i];
#pragma unroll
      for (const Entry& entry : entries[i]) push_above<kEntryStride>(entry.score, bound, entry.column, end_[i]);
    }
  }

  template <int kCount, class Use>
  __device__ __forceinline__ void finish_of(int (&counts)[2], Use&& use) {
    Entry entries[2][kCount];
    float bound[2];
    int mine[2];
    kth(entries, bound);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      bound[i] = below(bound[i]);
      mine[i] = 0;
#pragma unroll
      for (const Entry& entry : entries[i]) mine[i] += entry.score > bound[i];
    }
    // The quad lays its columns in eight words, where its queues were, and each lane finds the places of two.
    const int lane = threadIdx.x & 3;
    std::uint32_t list[2], at[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int next = __shfl_xor_sync(kAllLanes, mine[i], 1);
      const int pair = mine[i] + next;
      const int other = __shfl_xor_sync(kAllLanes, pair, 2);
      counts[i] = pair + other;
      list[i] = begin_[i] - lane * 8;
      at[i] = list[i] + 4 * ((lane & 1 ? next : 0) + (lane & 2 ? other : 0));
    }
    if (__any_sync(kAllLanes, counts[0] > k_ || counts[1] > k_)) {
      // Ties with the k-th best: the queues are as they were.
#pragma unroll
      for (int i = 0; i < 2; ++i) counts[i] = held_of_quad(end_[i] - begin_[i]);
      keep_best(counts);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        use_queues(begin_[i], end_[i], [&](int place, std::int32_t column) { use(i, place, column); });
      }
      __syncwarp();
      return;
    }
    __syncwarp();  // all lanes have read their queues
#pragma unroll
    for (int i = 0; i < 2; ++i) store_entry(begin_[i], {__int_as_float(kNone), kNone});
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (const Entry& entry : entries[i]) put_above(entry.score, bound[i], entry.column, at[i]);
    }
    __syncwarp();
    std::int32_t columns[2][2];
    int place[2][2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      columns[i][0] = load_word(list[i] + 4 * lane);
      columns[i][1] = load_word(list[i] + 4 * lane + 16);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 words = load_words(list[i] + 16 * half);
        const std::uint32_t others[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (const std::uint32_t word : others) {
          const auto other = static_cast<std::int32_t>(word);
          place[i][0] += other < columns[i][0];
          place[i][1] += other < columns[i][1];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (columns[i][e] != kNone) use(i, place[i][e], columns[i][e]);
      }
    }
    __syncwarp();  // the next item may use the queues
  }

  /// All entries of a queue; -inf behind the end.
  template <int kCount>
  __device__ __forceinline__ static void read(std::uint32_t begin, std::uint32_t end, Entry (&entries)[kCount]) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      asm volatile(
          "{\n.reg .pred p;\n"
          "setp.lt.u32 p, %2, %3;\n"
          "mov.b32 %0, 0xff800000;\n"
          "mov.b32 %1, 0;\n"
          "@p ld.shared.v2.b32 {%0, %1}, [%2];\n}\n"
          : "=&f"(entries[e].score), "=&r"(entries[e].column)
          : "r"(begin + e * kEntryStride), "r"(end)
          : "memory");
    }
  }

  /// Reads the queues and finds the k-th best scores of the quads, exactly; -inf where one has fewer.
  template <int kCount>
  __device__ __forceinline__ void kth(Entry (&entries)[2][kCount], float (&bound)[2]) const {
    float sorted[2][kSorted];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      read(begin_[i], end_[i], entries[i]);
#pragma unroll
      for (int e = 0; e < kSorted; ++e) sorted[i][e] = entries[i][e].score;
      sort_eight(sorted[i]);
#pragma unroll
      for (int e = kSorted; e < kCount; ++e) keep_sorted(sorted[i], entries[i][e].score);
    }
    kth_of_quads(sorted, k_, bound);
  }

  __device__ __forceinline__ static void put_above(float score, float bound, std::int32_t column, std::uint32_t& at) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.gt.f32 p, %1, %2;\n"
        "@p st.shared.b32 [%0], %3;\n"
        "@p add.u32 %0, %0, 4;\n}\n"
        : "+r"(at)
        : "f"(score), "f"(bound), "r"(column)
        : "memory");
  }
};

}  // namespace moba::cuda
