// From a tile of scores in accumulators to the few that matter. A lane compares its scores with its rows' thresholds by
// the sign of a difference, two instructions a score and no branch, and gets a mask a row; scores then lie in shared
// memory for a moment, since registers cannot be addressed, and the lane picks those of its mask one after the other.
#pragma once

#include <cstdint>

#include "cuda/device/softmax.cuh"
#include "cuda/sm90/sorted_scores.cuh"

namespace moba::cuda {

/// Of a tile of kColumns, 64 or 128, a lane has kColumns / 4 positions for each of its two rows: position p = 2 * j + c
/// is column 8 * j + c, counted from the lane's first (see wgmma.cuh), and scores[4 * j + 2 * i + c] of row i.
/// Columns that lie in shared memory at a time.
inline constexpr int kStagedColumns = 64;
inline constexpr int kStagedPositions = kStagedColumns / 4;
/// Bytes of a lane's scores of four columns of both rows, and from these to those of the next columns.
inline constexpr std::uint32_t kStagedBytes = 16;
inline constexpr std::uint32_t kStagedStride = 32 * kStagedBytes;
/// Shared memory of a warp for them.
inline constexpr int kWarpStageBytes = kStagedPositions / 2 * static_cast<int>(kStagedStride);

/// What a lane's two rows may choose of a tile, counted from the lane's first column.
struct TileColumns {
  std::int32_t first;             // the lane's first column, counted in blocks of the sequence
  std::int32_t begin[2], end[2];  // of each row, possibly outside of the tile
  std::int32_t count;             // columns below the farthest end of the warp's rows; the same in all lanes
  bool whole;                     // every row of the warp may choose every column; the same in all lanes
};

constexpr int column_of(int position) {
  return position / 2 * 8 + position % 2;
}
constexpr int score_of(int position, int row) {
  return position / 2 * 4 + 2 * row + position % 2;
}

/// The mask of the positions below `column` of kColumns; the first position is bit kColumns / 4 - 1.
template <int kColumns>
__device__ __forceinline__ std::uint32_t positions_below(std::int32_t column) {
  constexpr int kPositions = kColumns / 4;
  const std::int32_t at = max(column, 0);
  const std::int32_t count = min(2 * (at / 8) + min(at % 8, 2), kPositions);
  return (0xffffffffu >> (32 - kPositions)) &
         ~__funnelshift_rc(0xffffffffu >> (32 - kPositions), 0u, static_cast<unsigned>(count));
}

/// The positions whose scores are above their row's threshold: never a NaN.
template <int kColumns>
__device__ __forceinline__ void passing(const float (&scores)[kColumns / 2], const float (&threshold)[2],
                                        const TileColumns& tile, std::uint32_t (&mask)[2]) {
  constexpr int kHalf = kColumns / 8;
  std::uint32_t half[2][2] = {};
  const auto compare = [&](int p, int h) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // A difference that is a NaN, of NaN or of equal infinities, has no sign.
      const float difference = threshold[i] - scores[score_of(p, i)];
      half[h][i] = __funnelshift_l(__float_as_uint(difference), half[h][i], 1);
    }
  };
  if (tile.count > kColumns / 2) {
    // Two chains a row, for latency.
#pragma unroll
    for (int p = 0; p < kHalf; ++p) {
      compare(p, 0);
      compare(kHalf + p, 1);
    }
  } else {
#pragma unroll
    for (int p = 0; p < kHalf; ++p) compare(p, 0);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) mask[i] = half[0][i] << kHalf | half[1][i];
  if (!tile.whole) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      mask[i] &= positions_below<kColumns>(tile.end[i]) & ~positions_below<kColumns>(tile.begin[i]);
    }
  }
}

/// Greatest scores of groups of kEach positions of row i; -inf where a group has a column that may not be chosen.
template <int kEach, int kScores>
__device__ __forceinline__ void group_maxima(const float (&scores)[kScores], const TileColumns& tile, int i,
                                             float (&maxima)[kSorted]) {
#pragma unroll
  for (int group = 0; group < kSorted; ++group) {
    float high = minus_infinity();
#pragma unroll
    for (int p = group * kEach; p < (group + 1) * kEach; ++p) high = fmaxf(high, scores[score_of(p, i)]);
    maxima[group] = high;
  }
  if (tile.whole) return;
#pragma unroll
  for (int group = 0; group < kSorted; ++group) {
    // As written: a compiler makes branches of it.
    asm("{\n.reg .pred p;\n"
        "setp.ge.s32 p, %1, %2;\n"
        "setp.lt.and.s32 p, %3, %4, p;\n"
        "selp.f32 %0, %0, 0fff800000, p;\n}\n"
        : "+f"(maxima[group])
        : "r"(column_of(group * kEach)), "r"(tile.begin[i]), "r"(column_of(group * kEach + kEach - 1)),
          "r"(tile.end[i]));
  }
}

/// The same for the groups that the tile's columns fill best: of as many positions as the tile has for each, or of
/// fewer where few columns count.
template <int kColumns>
__device__ __forceinline__ void best_maxima(const float (&scores)[kColumns / 2], const TileColumns& tile, int i,
                                            float (&maxima)[kSorted]) {
  if (tile.count <= 32) {
    group_maxima<1>(scores, tile, i, maxima);
  } else if (kColumns == 64 || tile.count <= 64) {
    group_maxima<2>(scores, tile, i, maxima);
  } else {
    group_maxima<kColumns / 32>(scores, tile, i, maxima);
  }
}

/// For 64 columns at a time where some lane has a passing score: calls begin(counts of the lane's passing scores of both
/// rows), then, as long as a lane has one left, take(score, column) with the next of each row, -inf where none is left;
/// columns ascend. All lanes together. Where begin() returns false, what all lanes know, two at a time are found side by
/// side, for latency, and calls come in pairs. `stage`: shared address of the lane's first 16 bytes of its warp's stage.
template <int kColumns, class Begin, class Take>
__device__ __forceinline__ void sweep(const float (&scores)[kColumns / 2], const std::uint32_t (&mask)[2],
                                      std::uint32_t stage, std::int32_t first_column, Begin&& begin, Take&& take) {
  constexpr int kParts = kColumns / kStagedColumns;
  static_assert(kParts == 1 || kParts == 2);
#pragma unroll 1
  for (int part = 0; part < kParts; ++part) {
    std::uint32_t left[2];
    int counts[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      left[i] = mask[i];
      if constexpr (kParts == 2) left[i] = part == 0 ? mask[i] >> kStagedPositions : mask[i] & 0xffffu;
      counts[i] = __popc(left[i]);
    }
    int rounds = __reduce_max_sync(kAllLanes, max(counts[0], counts[1]));
    if (rounds == 0) continue;
    const auto put = [&](int from) {
#pragma unroll
      for (int j = 0; j < kStagedPositions / 2; ++j) {
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(stage + j * kStagedStride),
                     "f"(scores[from + 4 * j]), "f"(scores[from + 4 * j + 1]), "f"(scores[from + 4 * j + 2]),
                     "f"(scores[from + 4 * j + 3])
                     : "memory");
      }
    };
    if (part == 0) {
      put(0);
    } else {
      put(score_of(kColumns / 4 - kStagedPositions, 0));
    }
    const auto find_next = [&](float(&score)[2], std::int32_t(&column)[2]) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // The highest bit is the lowest column: bit b is position 15 - b. No bit at all gives b = -1.
        std::int32_t bit;
        asm("bfind.u32 %0, %1;" : "=r"(bit) : "r"(left[i]));
        const std::int32_t low = bit & 1;
        const std::uint32_t address =
            stage + (kStagedPositions / 2 - 1) * kStagedStride + 4 + 8 * i - 256 * bit + 252 * low;
        column[i] = first_column + part * kStagedColumns + column_of(kStagedPositions - 1) - 4 * bit + 3 * low;
        asm volatile(
            "{\n.reg .pred p;\n"
            "setp.ne.u32 p, %2, 0;\n"
            "mov.b32 %0, 0xff800000;\n"
            "@p ld.shared.f32 %0, [%1];\n}\n"
            : "=f"(score[i])
            : "r"(address), "r"(left[i])
            : "memory");
        left[i] &= ~(1u << (bit & 31));
      }
    };
    const auto one_at_a_time = begin(counts);
    if (one_at_a_time) {
#pragma unroll 1
      do {
        float score[2];
        std::int32_t column[2];
        find_next(score, column);
        take(score, column);
      } while (--rounds > 0);
    } else {
#pragma unroll 1
      do {
        float score[2][2];
        std::int32_t column[2][2];
#pragma unroll
        for (int e = 0; e < 2; ++e) find_next(score[e], column[e]);
#pragma unroll
        for (int e = 0; e < 2; ++e) take(score[e], column[e]);
      } while ((rounds -= 2) > 0);
    }
  }
}

}  // namespace moba::cuda
