// The inner loops of the CPU backend as one table of functions, compiled once for each SIMD level and chosen at run
// time. Everything else in this folder is plain C++ over this table: a faster product (say, of bfloat16 pairs) is
// another way to fill it.
//
// Panels. The second operand of a product, B [k, n], is held as ceil(n / 64) panels [k, 64]: the inner loop then reads
// one stream of whole vectors, whatever the vector length (4, 8 or 16 floats). The last panel is filled with zeros up
// to a multiple of 16 columns. The first operand is read one number at a time, so any strides will do, and P and its
// transpose are the same memory.
#pragma once

#include <cstdint>
#include <limits>

#include "moba/tensor.h"

namespace moba::cpu {

inline constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

inline constexpr std::int64_t kPanel = 64;  // columns of a panel: four vectors of AVX-512, 16 of SSE
inline constexpr std::int64_t kPad = 16;    // rows in scratch are padded to this many floats: the longest vector

constexpr std::int64_t padded(std::int64_t columns) {
  return (columns + kPad - 1) / kPad * kPad;
}
constexpr std::int64_t panels(std::int64_t columns) {
  return (columns + kPanel - 1) / kPanel;
}

/// Rows of a tensor in one of the input types; the columns are contiguous.
struct Rows {
  DType dtype = DType::kFloat32;
  const void* data = nullptr;
  std::int64_t stride = 0;  // elements from one row to the next
  std::int64_t rows = 0;
  std::int64_t columns = 0;
};

/// C [m, n] = A [m, k] B [k, n], or C += A B. Row i of A is a + (a_ids ? a_ids[i] : i) * a_row, likewise for C. Every
/// element is summed over k in ascending order from C (or 0), one rounding a step where the processor has FMA: its
/// bits depend neither on m nor on n nor on how the caller cuts k.
struct Product {
  std::int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;
  std::int64_t a_row = 0, a_column = 1;
  const std::int32_t* a_ids = nullptr;
  const float* b = nullptr;         // panels [ceil(n / 64)][k, 64]
  std::int64_t b_panel_stride = 0;  // floats from one panel to the next
  float* c = nullptr;               // rows have room for padded(n) floats
  std::int64_t c_row = 0;
  const std::int32_t* c_ids = nullptr;
  bool accumulate = false;
};

/// The running softmax of some rows: maximum m and sum l of 2^(score - m), and the unnormalised output. Before the
/// first key m = -inf, l = 0, out = 0.
struct SoftmaxState {
  float* maximum = nullptr;  // [rows]
  float* sum = nullptr;      // [rows]
  float* out = nullptr;      // [rows, out_row]
  std::int64_t out_row = 0;
};

/// Scores [rows, columns] of one key tile, in units of log2. Row i sees the columns [begin[i], end[i]) of the tile and
/// belongs to ids[i] of the state. Columns may be written up to padded(columns).
struct ScoreTile {
  float* scores = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t rows = 0, columns = 0;
  const std::int32_t* begin = nullptr;
  const std::int32_t* end = nullptr;
  const std::int32_t* ids = nullptr;
};

/// What the backward knows of each row: lse in units of log2, delta = out · dout, and the gradient of lse.
struct RowTermsView {
  const float* lse = nullptr;
  const float* delta = nullptr;
  const float* dlse = nullptr;
};

/// One row's best blocks while it streams over the representatives: a heap with the worst on top.
struct Candidate {
  float score;
  std::int32_t block;
};

struct Kernels {
  /// dst[r, c] = scale * src[r, c] in float32, zero from `columns` up to padded(columns).
  void (*load_rows)(const Rows& src, float scale, float* dst, std::int64_t dst_row);

  /// dst[c] = factor * src[c], rounded once to `dtype` (to nearest even).
  void (*store_row)(const float* src, float factor, std::int64_t columns, DType dtype, void* dst);

  /// Panels of the rows: [ceil(columns / 64)][rows, 64]. Returns whether every element is finite.
  bool (*pack_rows)(const Rows& src, float* dst);

  /// Panels of the transpose: [ceil(rows / 64)][columns, 64]. `staging` holds 4 * padded(columns) floats.
  void (*pack_transposed)(const Rows& src, float* staging, float* dst);

  void (*multiply)(const Product& product);

  /// scores -> 2^(score - new maximum), zero outside a row's columns; folds maximum and sum into the state and scales
  /// the state's output to the new maximum. The caller then adds P V to the output.
  void (*softmax)(const ScoreTile& tile, const SoftmaxState& state);

  /// scores -> P = 2^(score - lse[id]) and dp -> dS = P * ((dp - delta[id]) + dlse[id]), both zero outside a row's
  /// columns and in rows whose lse is -inf.
  void (*softmax_backward)(const ScoreTile& tile, float* dp, const RowTermsView& terms);

  /// dst[r] = rows[r, :] · vector, for few rows of queries.
  void (*dot_rows)(const float* rows, std::int64_t row_stride, std::int64_t count, std::int64_t columns,
                   const float* vector, float* dst);

  /// sum[c] += src[r, c], rows in ascending order, one rounding each.
  void (*add_rows)(const Rows& src, float* sum);

  /// dst[j] = sum over k of a[k, j] * b[k, j] for the 64 columns of two panels [k, 64], each sum taken as `multiply`
  /// takes it, so that the two agree in every bit where the operands do.
  void (*dot_columns)(const float* a, const float* b, std::int64_t k, float* dst);

  /// dst[c] = factor * dst[c] + weight * src[c].
  void (*blend)(float* dst, float factor, const float* src, float weight, std::int64_t columns);

  /// Offers scores[0 .. count) of the blocks first, first + 1, … to a heap of `held` <= budget candidates and returns
  /// how many it then holds. Blocks come in ascending order, so an equal score never displaces one that is held. NaN
  /// and -inf are not taken.
  std::int64_t (*keep_best)(const float* scores, std::int64_t count, std::int32_t first, Candidate* heap,
                            std::int64_t held, std::int64_t budget);
};

/// The table of the SIMD level in use.
const Kernels& kernels();

}  // namespace moba::cpu
