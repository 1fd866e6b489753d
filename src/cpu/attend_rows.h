// The forward pass of the rows of one chunk and one key/value head: start, fold in keys, finish.
#pragma once

#include "cpu/tiles.h"
#include "token_rows.h"

namespace moba::cpu {

// With this few (row, head) pairs a transposed copy of K costs more than the products, so K is read row by row.
inline constexpr std::int64_t kFewRows = 16;
inline constexpr std::int64_t kFewRowsKeyTile = 32;  // K and V of a tile stay in the first-level cache

/// The state of up to `ids` rows, and one tile of keys: what one thread needs.
struct AttendWorkspace {
  struct Sizes {
    std::int64_t ids, key_tile, blocks;
    std::int64_t gathered;  // bytes: AttendRows::gathered_bytes
  };

  AttendWorkspace(Context& context, const Selection& selection, const Dims& dims, const Sizes& sizes)
      : q(context, sizes.ids * padded(dims.dim), "query rows"),
        out(context, sizes.ids * padded(dims.value_dim), "output rows"),
        maximum(context, sizes.ids, "row maxima"),
        sum(context, sizes.ids, "row sums"),
        k(context, keys_in_panels(sizes) * padded(dims.dim), "a tile of keys"),
        v(context, sizes.key_tile * panels(dims.value_dim) * kPanel, "a tile of values"),
        scores(context, kRowTile * keys_in_panels(sizes), "a tile of scores"),
        staging(context, 4 * padded(dims.dim), "keys to transpose"),
        gathered(context, sizes.gathered, "a tile of keys and values out of pages"),
        lists(context, selection, sizes.ids, sizes.blocks),
        score_row(keys_in_panels(sizes)) {}

  static std::int64_t bytes(const Selection& selection, const Dims& dims, const Sizes& sizes) {
    const std::int64_t floats = sizes.ids * (padded(dims.dim) + padded(dims.value_dim) + 2) +
                                keys_in_panels(sizes) * (padded(dims.dim) + kRowTile) +
                                sizes.key_tile * panels(dims.value_dim) * kPanel + 4 * padded(dims.dim);
    return 4 * floats + sizes.gathered + BlockLists::bytes(selection, sizes.ids, sizes.blocks);
  }

  Scratch<float> q, out, maximum, sum;
  Scratch<float> k, v, scores, staging;
  Scratch<std::byte> gathered;
  BlockLists lists;
  std::int64_t score_row;
  std::int64_t keys = 0;  // of the tile at hand
  bool v_is_finite = true;

 private:
  static std::int64_t keys_in_panels(const Sizes& sizes) { return panels(sizes.key_tile) * kPanel; }
};

/// One call of `attend`, seen from its tasks.
class AttendRows {
 public:
  AttendRows(Context& lent, const AttendArgs& call)
      : context(lent),
        args(call),
        dims(call.q, call.k, call.v),
        kernel(kernels()),
        few_have_pairs(call.q.dtype == DType::kBFloat16 && pair_kernels() != nullptr),
        has_pairs(call.q.dtype == DType::kBFloat16 && pair_product_kernels() != nullptr),
        sequences(sequences_of(lent, call.batch, call.page_table, call.q.shape[0], call.k.shape[0])) {}

  bool is_few(std::int64_t rows) const { return rows * dims.group <= kFewRows; }
  std::int64_t out_row() const { return padded(dims.value_dim); }
  std::int64_t ids(const Chunk& chunk) const { return dims.group * chunk.rows; }

  /// Where a sequence's tokens lie.
  TokenRows token_rows(const Sequence& sequence) const {
    return {context, args.page_table, sequence, pages_of(args.k, args.page_table)};
  }

  struct KeysAndValues {
    Rows k, v;
  };
  /// The tokens [key, key + keys) of one head: as they lie or, where pages part them, copied to `gathered`. Tiles have
  /// the same borders in pages as in one piece, and so results have the same bits.
  KeysAndValues tile_at(const TokenRows& place, std::int64_t kv_head, std::int64_t key, std::int64_t keys,
                        std::byte* gathered) const;
  /// What `tile_at` needs for that many keys.
  std::int64_t gathered_bytes(std::int64_t keys) const {
    return args.page_table.present() ? keys * (dims.dim + dims.value_dim) * size_of(args.k.dtype) : 0;
  }

  /// Loads the query rows of a chunk as the ids first_id, first_id + 1, … of the workspace, and empties their state.
  void start(AttendWorkspace& w, const Chunk& chunk, std::int64_t kv_head, std::int64_t first_id) const;

  /// Folds the chunk's keys into those rows, a tile at a time in ascending order.
  void fold(AttendWorkspace& w, const Chunk& chunk, std::int64_t kv_head, std::int64_t first_id, bool few) const;

  /// Writes out and lse from the state of the chunk's rows; `out` is overwritten.
  void finish(const Chunk& chunk, std::int64_t kv_head, const float* maximum, const float* sum, float* out) const;

  float& lse(std::int64_t head, std::int64_t row) const {
    const TensorView& view = args.result.lse;
    return view.as<float>()[head * view.stride[0] + row * view.stride[1]];
  }

  Context& context;
  const AttendArgs& args;
  const Dims dims;
  const Kernels& kernel;
  const bool few_have_pairs, has_pairs;  // products of bfloat16 pairs, for few rows and for many
  const Sequences sequences;

 private:
  void fold_few_pairs(AttendWorkspace& w, const Chunk& chunk, std::int64_t kv_head, std::int64_t first_id) const;
  void fold_tile(AttendWorkspace& w, RowTile& tile, std::int64_t first_id, bool few) const;
};

/// Rows that are few (see kFewRows) in their sequence.
void attend_few(const AttendRows& call);

}  // namespace moba::cpu
