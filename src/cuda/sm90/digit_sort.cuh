// One pass of a radix sort over words in shared memory, by a block of threads: stable, and in place, since the words
// lie in registers while their places are found.
#pragma once

#include <cstdint>

#include "cuda/sm90/block_scan.cuh"

namespace moba::cuda {

/// A place in shared memory that holds no word.
inline constexpr std::uint32_t kNoWord = 0xffffffffu;

/// The lanes whose digit is this lane's, of those that have one (`counts`). All lanes together.
template <int kBits>
__device__ __forceinline__ std::uint32_t lanes_with(std::uint32_t digit, bool counts) {
  constexpr unsigned kAll = 0xffffffffu;
  std::uint32_t lanes = __ballot_sync(kAll, counts);
#pragma unroll
  for (int bit = 0; bit < kBits; ++bit) {
    const bool set = (digit >> bit & 1u) != 0;
    const std::uint32_t with = __ballot_sync(kAll, set);
    lanes &= set ? with : ~with;
  }
  return lanes;
}

/// For warps that have up to 32 * kEach words each.
template <int kWarps, int kEach>
struct DigitSort {
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kMostDigits = 128;
  /// One more than digits: the scan reads the same digit of several warps.
  static constexpr int kStride = kMostDigits + 1;
  static constexpr int kCounterWords = kWarps * kStride;

  /// Sorts by kBits bits from kShift on. All threads of the block; each warp names the words of the table that are its
  /// part, [begin, begin + count), and parts ascend with the warps. Words that are kNoWord vanish; the others lie at
  /// the table's begin afterwards. Returns how many. `counters`: [kCounterWords] in shared memory. Ends with all
  /// threads together.
  template <int kShift, int kBits>
  __device__ __forceinline__ static std::uint32_t pass(std::uint32_t* table, std::uint32_t* counters,
                                                       std::uint32_t begin, std::uint32_t count) {
    constexpr int kDigits = 1 << kBits;
    static_assert(kDigits <= kMostDigits && kDigits % 32 == 0 && kEach % 2 == 0);
    const std::uint32_t lane = threadIdx.x % 32, before_me = (1u << lane) - 1u;
    std::uint32_t* const mine = counters + threadIdx.x / 32 * kStride;
#pragma unroll
    for (int digit = 0; digit < kDigits; digit += 32) mine[digit + lane] = 0;
    std::uint32_t words[kEach], ranks[kEach / 2];  // a rank among the warp's words is below 2^16
#pragma unroll
    for (int i = 0; i < kEach; ++i) words[i] = 32 * i + lane < count ? table[begin + 32 * i + lane] : kNoWord;
    const auto digit_of = [](std::uint32_t word) { return word >> kShift & (kDigits - 1u); };
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (i % 2 == 0) ranks[i / 2] = 0;
      if (32 * i >= count) continue;
      const std::uint32_t digit = digit_of(words[i]);
      const bool counts = words[i] != kNoWord;
      const std::uint32_t peers = lanes_with<kBits>(digit, counts), earlier = __popc(peers & before_me);
      const std::uint32_t start = mine[digit];
      __syncwarp();
      if (counts && earlier == 0) mine[digit] = start + __popc(peers);
      __syncwarp();
      ranks[i / 2] |= (start + earlier) << (i % 2 * 16);
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
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (words[i] == kNoWord) continue;
      table[mine[digit_of(words[i])] + (ranks[i / 2] >> (i % 2 * 16) & 0xffffu)] = words[i];
    }
    __syncthreads();
    return scan.total;
  }
};

}  // namespace moba::cuda
