// bfloat16 products on processors whose dot product of bfloat16 pairs is one instruction (AVX-512-BF16: vdpbf16ps), as
// a table of functions beside that of kernels.h. Highway 1.0.3 emulates this instruction, so the functions are
// intrinsics in a folder of their own; everything else is plain C++ over the table.
//
// Layouts. A `Pair` is two bfloat16 numbers that a product multiplies in one step, the earlier one in the low half.
//   rows     [rows][pairs]: pairs of neighbouring columns, which is how a bfloat16 row lies in memory.
//   panels   [ceil(columns / 64)][pairs][64]: the second operand of a product, as in kernels.h.
// Scores are kept transposed, [keys][64 query rows]: maxima and sums then run down the vectors and need no horizontal
// step, and keys are read as they lie. Weights [pairs of keys][64 query rows] serve as the *first* operand of P V.
//
// Numbers: sums are float32, as everywhere. The instruction takes subnormal inputs and results for zero.
#pragma once

#include <cstdint>

namespace moba::cpu {

using Pair = std::uint32_t;

inline constexpr std::int64_t kPairRows = 64;   // query rows of a tile: four vectors of 16 lanes
inline constexpr std::int64_t kPairKeys = 128;  // keys of a tile of scores: 32 KiB, most of the first-level cache
// Keys laid out at a time: K and V of them stay in the second-level cache (256 KiB at a head dim of 128), and a tile of
// query rows is laid out once for all of them.
inline constexpr std::int64_t kPairTileKeys = 512;

constexpr std::int64_t pairs_of(std::int64_t count) {
  return (count + 1) / 2;
}
/// Pairs of a row in scratch: whole vectors, so that every row begins with a line of the cache.
constexpr std::int64_t pair_row(std::int64_t columns) {
  return (columns + 31) / 32 * 16;
}

/// bfloat16 rows: row i is data + (ids ? ids[i] : i) * stride; its columns are contiguous.
struct PairSource {
  const std::uint16_t* data = nullptr;
  std::int64_t stride = 0;  // elements
  const std::int32_t* ids = nullptr;
  std::int64_t rows = 0, columns = 0;
};

/// C [m, n] = A B, or C * scale + A B, with A [m, pairs] at a + i * a_row + p * a_pair and B in panels. Every element
/// is one chain over the pairs in ascending order: its bits depend neither on m nor on n. Where a_pair is not 1, A is
/// weights: m is at most kPairRows, and pairs at most kPairKeys / 2.
struct PairProduct {
  std::int64_t m = 0, n = 0, pairs = 0;
  const Pair* a = nullptr;
  std::int64_t a_row = 0, a_pair = 1;  // in pairs
  const Pair* b = nullptr;
  std::int64_t b_panel_stride = 0;  // in pairs
  float* c = nullptr;               // rows have room for padded(n) floats
  std::int64_t c_row = 0;
  const float* c_scale = nullptr;  // [m]; null for 1
  bool accumulate = false;
};

/// Scores [keys][64] of `lanes` query rows against `keys` <= kPairKeys keys. Lane i sees the keys [begin[i], end[i]);
/// null where every lane sees every key. Both hold 64 numbers.
struct PairTile {
  const float* scores = nullptr;
  std::int64_t keys = 0, lanes = 0;
  const std::int32_t* begin = nullptr;
  const std::int32_t* end = nullptr;
  float scale = 1.0f;  // scores * scale are in units of log2
};

/// The running softmax of 64 lanes: a row's weights are 2^(score - shift), where shift is the greatest score so far;
/// factor is what the unnormalised output has to be multiplied by before weights are added.
struct PairState {
  float* shift = nullptr;
  float* sum = nullptr;
  float* factor = nullptr;
};

/// What the backward knows of 64 lanes: lse in units of log2, delta = out · dout, the gradient of lse.
struct PairTerms {
  const float* lse = nullptr;
  const float* delta = nullptr;
  const float* dlse = nullptr;
};

struct PairKernels {
  /// What a thread does before its first product and after its last one.
  void (*begin_products)();
  void (*end_products)();

  /// dst [rows][row_pairs] = the rows, zero behind their columns.
  void (*copy_rows)(const PairSource& src, Pair* dst, std::int64_t row_pairs);

  /// Panels whose pairs are neighbouring rows: [ceil(columns / 64)][pairs_of(rows)][64], zero up to padded(columns).
  /// Returns whether every element is finite.
  bool (*pack_row_pairs)(const PairSource& src, Pair* dst);

  /// A panel whose lanes are the rows (at most 64) and whose pairs are neighbouring columns: [pairs_of(columns)][64],
  /// zero up to a multiple of 16 lanes.
  void (*pack_lanes)(const PairSource& src, Pair* dst);

  void (*multiply)(const PairProduct& product);

  /// Folds the tile into the state and writes weights [pairs_of(keys)][64], rounded to bfloat16; those of hidden keys
  /// are 0. Returns whether a factor other than 1 was written.
  bool (*softmax)(const PairTile& tile, const PairState& state, Pair* weights);

  /// P = 2^(score - lse) and dS = P * ((dp - delta) + dlse) of a tile whose dp [keys][64] is given, rounded to
  /// bfloat16; 0 for hidden keys and where lse is -inf. dS goes to `slopes` as weights do ([pairs_of(keys)][64]) where
  /// that is not null; P and dS go to `p_rows` and `slope_rows` [keys][32], pairs of neighbouring lanes, where those
  /// are not null.
  void (*softmax_backward)(const PairTile& tile, const float* dp, const PairTerms& terms, Pair* slopes, Pair* p_rows,
                           Pair* slope_rows);

  /// dst[lane] = a[:, lane] · b[:, lane] for two panels [pairs][64], each sum the chain that `multiply` takes.
  void (*dot_lanes)(const Pair* a, const Pair* b, std::int64_t pairs, float* dst);

  /// scores[t] = scale * keys[t, :] · query, for few query rows: sums of 16 lanes, not the chain of `multiply`.
  void (*dot_row)(const PairSource& keys, const std::uint16_t* query, float scale, float* scores);

  /// out[c] += sum over t of weights[t] * values[t, c]; out has room for padded(columns).
  void (*add_row)(const PairSource& values, const float* weights, float* out);

  /// best [places][64], greatest first: each lane's greatest scores while they stream by, `places` from 1 to kMostKept.
  /// Before the first ones it is -inf; NaN is never taken. Offers scores [blocks][64].
  void (*rank_scores)(const float* scores, std::int64_t blocks, std::int64_t lanes, std::int64_t places, float* best);

  /// marks [64][words], words >= blocks / 64: bit b of a lane says whether scores [blocks][64] of block b is at least
  /// least [64] of the lane. The words that hold blocks are written; NaN is no score. counts [64]: bits of each lane.
  void (*mark_scores)(const float* scores, std::int64_t blocks, const float* least, std::int64_t lanes,
                      std::int64_t words, std::uint64_t* marks, std::int32_t* counts);
};

inline constexpr std::int64_t kMostKept =
    16;  // the best of a lane live in registers; beyond, a heap per row is quicker

/// The best table that build, processor, operating system and the limit on the SIMD level leave; null for none.
const PairKernels* pair_kernels();

/// The same for attention over tiles of rows, forward and backward, whose products are nearly all of the work. Null on
/// processors with the instruction but not its speed: Intel's issue it at half the rate of float32 products, so these
/// are as fast, and want less around them. There the gate and few rows are for pairs, these are not.
const PairKernels* pair_product_kernels();

/// Whether the table is that of matrix tiles.
bool pairs_have_tiles();

/// Has a thread ready for products while it lives; one at a time.
class ReadyForProducts {
 public:
  explicit ReadyForProducts(const PairKernels& kernels) : kernels_(kernels) { kernels_.begin_products(); }
  ~ReadyForProducts() { kernels_.end_products(); }
  ReadyForProducts(const ReadyForProducts&) = delete;
  ReadyForProducts& operator=(const ReadyForProducts&) = delete;

 private:
  const PairKernels& kernels_;
};

}  // namespace moba::cpu
