// The product of bfloat16 pairs on matrix tiles: 16 rows of 16 pairs against 16 pairs of 16 columns in one instruction.
// Rows of A and panels of B are tiles as they lie.
#include <immintrin.h>

#include "cpu/amx_bf16/verbs.h"
#include "cpu/avx512_bf16/transpose.h"

namespace moba::cpu::amx_bf16 {
namespace {

constexpr std::int64_t kPanelLanes = 64;
constexpr std::int64_t kTile = 16;  // rows of a tile, and pairs or floats of each
constexpr std::int64_t kPanelBytes = 4 * kPanelLanes;

/// What LDTILECFG reads. Tiles 0 to 3 hold sums, two by two, 4 and 5 rows of A, 6 and 7 columns of B.
struct alignas(64) Shapes {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr Shapes kWhole;

/// The shapes of a row of tiles with `upper` rows, another with `lower`, and `pairs` steps of the product.
Shapes shapes_of(std::int64_t upper, std::int64_t lower, std::int64_t pairs) {
  Shapes shapes;
  shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = static_cast<std::uint8_t>(upper);
  shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = static_cast<std::uint8_t>(lower);
  shapes.row_bytes[4] = shapes.row_bytes[5] = static_cast<std::uint16_t>(4 * pairs);
  shapes.rows[6] = shapes.rows[7] = static_cast<std::uint8_t>(pairs);
  return shapes;
}

/// C = A B or C += A B for the tiles at hand; strides in elements.
struct Tiles {
  const Pair* a;
  std::int64_t a_row;
  const Pair* b;
  float* c;
  std::int64_t c_row;
  std::int64_t steps;  // of as many pairs as a tile has
  bool accumulate;
};

template <int kRows, int kColumns>
inline void multiply_tiles(const Tiles& t) {
  float* below = t.c + kTile * t.c_row;
  if (t.accumulate) {
    _tile_loadd(0, t.c, 4 * t.c_row);
    if constexpr (kColumns == 2) _tile_loadd(1, t.c + kTile, 4 * t.c_row);
    if constexpr (kRows == 2) _tile_loadd(2, below, 4 * t.c_row);
    if constexpr (kRows == 2 && kColumns == 2) _tile_loadd(3, below + kTile, 4 * t.c_row);
  } else {
    _tile_zero(0);
    if constexpr (kColumns == 2) _tile_zero(1);
    if constexpr (kRows == 2) _tile_zero(2);
    if constexpr (kRows == 2 && kColumns == 2) _tile_zero(3);
  }
  const Pair *a = t.a, *b = t.b;
  for (std::int64_t step = 0; step < t.steps; ++step, a += kTile, b += kTile * kPanelLanes) {
    _tile_loadd(4, a, 4 * t.a_row);
    _tile_loadd(6, b, kPanelBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns == 2) {
      _tile_loadd(7, b + kTile, kPanelBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRows == 2) {
      _tile_loadd(5, a + kTile * t.a_row, 4 * t.a_row);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kRows == 2 && kColumns == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, t.c, 4 * t.c_row);
  if constexpr (kColumns == 2) _tile_stored(1, t.c + kTile, 4 * t.c_row);
  if constexpr (kRows == 2) _tile_stored(2, below, 4 * t.c_row);
  if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, below + kTile, 4 * t.c_row);
}

template <int kRows>
inline void multiply_columns(Tiles t, std::int64_t columns) {
  for (std::int64_t c = 0; c < columns; c += 2 * kTile, t.b += 2 * kTile, t.c += 2 * kTile) {
    if (columns - c > kTile) {
      multiply_tiles<kRows, 2>(t);
    } else {
      multiply_tiles<kRows, 1>(t);
    }
  }
}

/// All rows and columns, for `steps` tiles of `pairs` pairs that begin with pair `first`.
void multiply_pairs(const PairProduct& p, std::int64_t first, std::int64_t steps, std::int64_t pairs, bool accumulate) {
  for (std::int64_t row = 0; row < p.m; row += 2 * kTile) {
    const std::int64_t rows = p.m - row < 2 * kTile ? p.m - row : 2 * kTile;
    const std::int64_t upper = rows < kTile ? rows : kTile, lower = rows > kTile ? rows - kTile : kTile;
    const bool whole = upper == kTile && lower == kTile && pairs == kTile;
    if (!whole) {
      const Shapes shapes = shapes_of(upper, lower, pairs);
      _tile_loadconfig(&shapes);
    }
    for (std::int64_t column = 0; column < p.n; column += kPanelLanes) {
      const std::int64_t columns = p.n - column < kPanelLanes ? p.n - column : kPanelLanes;
      const Tiles tiles{.a = p.a + row * p.a_row + first,
                        .a_row = p.a_row,
                        .b = p.b + column / kPanelLanes * p.b_panel_stride + first * kPanelLanes,
                        .c = p.c + row * p.c_row + column,
                        .c_row = p.c_row,
                        .steps = steps,
                        .accumulate = accumulate};
      if (rows > kTile) {
        multiply_columns<2>(tiles, columns);
      } else {
        multiply_columns<1>(tiles, columns);
      }
    }
    if (!whole) _tile_loadconfig(&kWhole);
  }
}

/// Weights [pairs][64] as rows of A [64][32].
void lay_out_rows(const PairProduct& p, Pair* rows) {
  for (std::int64_t row = 0; row < p.m; row += kTile) {
    const auto rows_left = static_cast<__mmask16>(p.m - row < kTile ? (1u << (p.m - row)) - 1u : 0xffffu);
    for (std::int64_t pair = 0; pair < p.pairs; pair += kTile) {
      const std::int64_t rest = p.pairs - pair;
      const Pair* from = p.a + pair * p.a_pair + row;
      __m512i square[kTile];
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) {
        square[i] = i < rest ? _mm512_maskz_loadu_epi32(rows_left, from + i * p.a_pair) : _mm512_setzero_si512();
      }
      avx512_bf16::transpose(square);
      Pair* to = rows + row * kPairKeys / 2 + pair;
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) _mm512_store_si512(to + i * kPairKeys / 2, square[i]);
    }
  }
}

/// Most rows are not scaled: the greatest score of one seldom moves.
void scale_rows(const PairProduct& p) {
  for (std::int64_t i = 0; i < p.m; ++i) {
    if (p.c_scale[i] == 1.0f) continue;
    const __m512 scale = _mm512_set1_ps(p.c_scale[i]);
    float* row = p.c + i * p.c_row;
    for (std::int64_t c = 0; c < p.n; c += kTile)
      _mm512_storeu_ps(row + c, _mm512_mul_ps(_mm512_loadu_ps(row + c), scale));
  }
}

}  // namespace

void begin_products() {
  _tile_loadconfig(&kWhole);
}

void end_products() {
  _tile_release();
}

void multiply(const PairProduct& product) {
  PairProduct p = product;
  alignas(64) Pair rows[kPairRows * kPairKeys / 2];
  if (p.a_pair != 1) {
    lay_out_rows(p, rows);
    p.a = rows;
    p.a_row = kPairKeys / 2;
    p.a_pair = 1;
  }
  if (p.c_scale != nullptr) scale_rows(p);
  const std::int64_t steps = p.pairs / kTile, rest = p.pairs % kTile;
  if (steps > 0) multiply_pairs(p, 0, steps, kTile, p.accumulate);
  if (rest > 0) multiply_pairs(p, steps * kTile, 1, rest, p.accumulate || steps > 0);
}

void dot_lanes(const Pair* a, const Pair* b, std::int64_t pairs, float* dst) {
  // As the instruction adds: of the pairs of a tile the first numbers and the second ones apart, each from zero.
  const auto earlier = [](__m512i pair) { return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)); };
  const auto later = [](__m512i pair) {
    return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  };
  for (std::int64_t lane = 0; lane < kPanelLanes; lane += kTile) {
    __m512 sum = _mm512_setzero_ps();
    for (std::int64_t first = 0; first < pairs; first += kTile) {
      __m512 even = _mm512_setzero_ps(), odd = even;
      for (std::int64_t step = first; step < pairs && step < first + kTile; ++step) {
        const __m512i x = _mm512_loadu_si512(a + step * kPanelLanes + lane);
        const __m512i y = _mm512_loadu_si512(b + step * kPanelLanes + lane);
        even = _mm512_fmadd_ps(earlier(x), earlier(y), even);
        odd = _mm512_fmadd_ps(later(x), later(y), odd);
      }
      sum = _mm512_add_ps(sum, _mm512_add_ps(even, odd));
    }
    _mm512_storeu_ps(dst + lane, sum);
  }
}

}  // namespace moba::cpu::amx_bf16
