// One pass of a radix sort over words in shared memory, by a block of threads: stable, and in place, since the words
// lie in registers while their places are found.
#pragma once

#include <cstdint>

#include "cuda/device/barrier.cuh"
#include "cuda/sm90/block_scan.cuh"
#include "cuda/sm90/entry.cuh"

namespace moba::cuda {

/// A place in shared memory that holds no word.
inline constexpr std::uint32_t kNoWord = 0xffffffffu;

/// Takes from `lanes` those whose word has another value than this lane's at a bit. All lanes together. As written:
/// a compiler makes seven instructions of it, not four.
__device__ __forceinline__ void keep_equal(std::uint32_t& lanes, std::uint32_t word, std::uint32_t bit) {
  asm volatile(
      "{\n.reg .pred p;\n.reg .b32 t;\n"
      "and.b32 t, %1, %2;\n"
      "setp.ne.u32 p, t, 0;\n"
      "vote.sync.ballot.b32 t, p, 0xffffffff;\n"
      "@!p not.b32 t, t;\n"
      "and.b32 %0, %0, t;\n}\n"
      : "+r"(lanes)
      : "r"(word), "r"(bit));
}

/// Words of a warp, at most 32 * kEach: [begin, begin + count) of a table in shared memory.
template <int kWarps, int kEach>
struct DigitSort {
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kMostDigits = 128;
  /// One more than digits: the scan reads the same digit of several warps.
  static constexpr int kStride = kMostDigits + 1;
  static constexpr int kCounterWords = kWarps * kStride;
  /// Steps of a warp between two looks at how many words it has.
  static constexpr int kSteps = 4;

  /// Sorts by kBits bits from kShift on. All threads of the block; each warp names the words that are its part, and
  /// parts ascend with the warps. Words that are kNoWord vanish; the others lie at the table's begin afterwards.
  /// Returns how many. `counters`: [kCounterWords] in shared memory. Ends with all threads together.
  template <int kShift, int kBits>
  __device__ __forceinline__ static std::uint32_t pass(std::uint32_t* table, std::uint32_t* counters,
                                                       std::uint32_t begin, std::uint32_t count) {
    constexpr int kDigits = 1 << kBits;
    static_assert(kDigits <= kMostDigits && kDigits % 32 == 0 && kEach % kSteps == 0 && kShift >= 2);
    const std::uint32_t lane = threadIdx.x % 32;
    std::uint32_t before_me = (1u << lane) - 1u;
    std::uint32_t mine = shared_address(counters + threadIdx.x / 32 * kStride);
    // Not found again at each use, though registers are few.
    asm volatile("" : "+r"(before_me), "+r"(mine));
#pragma unroll
    for (int digit = 0; digit < kDigits; digit += 32) store_word(mine + 4 * (digit + lane), 0);
    std::uint32_t words[kEach], ranks[kEach / 2] = {};  // a rank among the warp's words is below 2^16
#pragma unroll
    for (int i = 0; i < kEach; ++i) words[i] = 32 * i + lane < count ? table[begin + 32 * i + lane] : kNoWord;
    const auto counter_of = [&](std::uint32_t word) { return mine + (word >> (kShift - 2) & (kDigits - 1u) << 2); };
    __syncwarp();
#pragma unroll
    for (int first = 0; first < kEach; first += kSteps) {
      if (32 * first >= count) continue;
#pragma unroll
      for (int i = first; i < first + kSteps; ++i) {
        std::uint32_t peers = __ballot_sync(0xffffffffu, words[i] != kNoWord);
#pragma unroll
        for (int bit = kShift; bit < kShift + kBits; ++bit) keep_equal(peers, words[i], 1u << bit);
        const std::uint32_t counter = counter_of(words[i]), earlier = peers & before_me;
        const std::uint32_t start = load_word(counter);
        __syncwarp();
        if (words[i] != kNoWord && earlier == 0) store_word(counter, start + __popc(peers));
        __syncwarp();
        ranks[i / 2] |= (start + __popc(earlier)) << (i % 2 * 16);
      }
    }
    __syncthreads();
    // Places by digit, then by warp.
    constexpr int kPer = kDigits / 32;
    const std::uint32_t first = threadIdx.x * kPer;
    std::uint32_t* const counted = counters + first % kWarps * kStride + first / kWarps;
    std::uint32_t counts[kPer], sum = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i) sum += counts[i] = counted[i * kStride];
    const auto scan = block_scan<kThreads>(sum, 0u, [](std::uint32_t a, std::uint32_t b) { return a + b; });
    std::uint32_t at = scan.exclusive;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      counted[i * kStride] = at;
      at += counts[i];
    }
    __syncthreads();
    const std::uint32_t table_address = shared_address(table);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (words[i] == kNoWord) continue;
      const std::uint32_t place = load_word(counter_of(words[i])) + (ranks[i / 2] >> (i % 2 * 16) & 0xffffu);
      store_word(table_address + 4 * place, words[i]);
    }
    __syncthreads();
    return scan.total;
  }
};

}  // namespace moba::cuda
