// Folding keys into the running softmax of a chunk's rows, by products of bfloat16 pairs.
#include "cpu/attend_pairs.h"

#include "cpu/pairs_visible.h"

namespace moba::cpu {
namespace {

std::int64_t value_panels(const AttendRows& call) {
  return panels(call.dims.value_dim) * kPanel;
}

}  // namespace

std::int64_t PairFold::bytes(const AttendRows& call, std::int64_t ids, std::int64_t blocks) {
  const std::int64_t row = pair_row(call.dims.dim);
  const std::int64_t words = ids * (row + call.out_row() + 2) + kPairTileKeys * row +
                             kPairTileKeys / 2 * value_panels(call) +
                             (row + kPairKeys / 2 + kPairKeys + call.out_row()) * kPairRows;
  return 4 * words + call.gathered_bytes(kPairTileKeys) + visible_bytes(call.dims.value_dim) +
         BlockLists::bytes(call.args.selection, ids, blocks);
}

PairFold::PairFold(const AttendRows& call, std::int64_t ids, std::int64_t blocks)
    : call_(call),
      kernel_(*pair_kernels()),
      ready_(kernel_),
      row_(pair_row(call.dims.dim)),
      coming_(call.args.k, call.args.v),
      q_(call.context, ids * row_, "query rows"),
      k_(call.context, kPairTileKeys * row_, "a tile of keys"),
      v_(call.context, kPairTileKeys / 2 * value_panels(call), "a tile of values"),
      lanes_(call.context, row_ * kPairRows, "a tile of query rows"),
      weights_(call.context, kPairKeys / 2 * kPairRows, "a tile of weights"),
      scores_(call.context, kPairKeys * kPairRows, "a tile of scores"),
      rows_(call.context, kPairRows * call.out_row(), "output rows of a tile"),
      out_(call.context, ids * call.out_row(), "output rows"),
      shift_(call.context, ids, "row maxima"),
      sum_(call.context, ids, "row sums"),
      gathered_(call.context, call.gathered_bytes(kPairTileKeys), "a tile of keys and values out of pages"),
      lists_(call.context, call.args.selection, ids, blocks) {}

void PairFold::run(const Chunk& chunk, std::int64_t kv_head) {
  const Dims& dims = call_.dims;
  const AttendArgs& args = call_.args;
  const Sequence sequence = call_.sequences[chunk.sequence];
  const TokenRows place = call_.token_rows(sequence);
  for (std::int64_t h = 0; h < dims.group; ++h) {
    const Rows rows = rows_of(args.q, chunk.row_begin, kv_head * dims.group + h, chunk.rows);
    kernel_.copy_rows(pair_source(rows), q_.data() + h * chunk.rows * row_, row_);
  }
  const std::int64_t ids = call_.ids(chunk);
  std::fill_n(shift_.data(), ids, kNegativeInfinity);
  std::fill_n(sum_.data(), ids, 0.0f);
  std::fill_n(out_.data(), ids * call_.out_row(), 0.0f);

  if (args.selection.kind == SelectionKind::kList) {
    lists_.fill(call_.context, args.selection, sequence, chunk, kv_head, dims);
  }
  for_each_tile(
      args.selection, sequence, chunk, dims, lists_, TileShape{kPairRows, kPairTileKeys},
      [&](std::int64_t key, std::int64_t keys) {
        const AttendRows::KeysAndValues tile = call_.tile_at(place, kv_head, key, keys, gathered_.data());
        kernel_.copy_rows(pair_source(tile.k), k_.data(), row_);
        v_is_finite_ = kernel_.pack_row_pairs(pair_source(tile.v), v_.data());
        keys_ = keys;
        const std::int64_t next = key + keys, next_end = std::min(sequence.k_length, next + keys);
        if (next < next_end) {
          const TokenRows::Run run = place.run(next, next_end);
          coming_.begin(run.row, run.row + run.count, kv_head);
        } else {
          coming_.begin(0, 0, kv_head);
        }
      },
      [&](const RowTile& tile) { fold_tile(tile); });
  call_.finish(chunk, kv_head, shift_.data(), sum_.data(), out_.data());
}

void PairFold::fold_tile(const RowTile& tile) {
  const Dims& dims = call_.dims;
  // Rows of a list lie far apart; products want their outputs together.
  const std::int64_t out_row = call_.out_row();
  for (std::int64_t i = 0; i < tile.count; ++i) {
    const float* out = out_.data() + tile.ids[i] * out_row;
    for (std::int64_t c = 0; c < out_row; c += kPad) __builtin_prefetch(out + c, 1, 3);
  }
  kernel_.pack_lanes({reinterpret_cast<const std::uint16_t*>(q_.data()), 2 * row_, tile.ids, tile.count, dims.dim},
                     lanes_.data());
  float shift[kPairRows] = {}, sum[kPairRows] = {}, factor[kPairRows];
  for (std::int64_t i = 0; i < tile.count; ++i) {
    std::copy_n(out_.data() + tile.ids[i] * out_row, out_row, rows_.data() + i * out_row);
    shift[i] = shift_[tile.ids[i]];
    sum[i] = sum_[tile.ids[i]];
  }
  const std::int64_t every_begin = *std::max_element(tile.begin, tile.begin + tile.count);
  const std::int64_t every_end = *std::min_element(tile.end, tile.end + tile.count);
  std::int32_t begin[kPairRows] = {}, end[kPairRows] = {};

  // Columns before the first tile of scores that any row sees are left out.
  const std::int64_t last = tile.end_column();
  for (std::int64_t key = tile.first_column() / kPairKeys * kPairKeys; key < last; key += kPairKeys) {
    PairTile scores{.scores = scores_.data(),
                    .keys = std::min(kPairKeys, last - key),
                    .lanes = tile.count,
                    .scale = static_cast<float>(call_.args.softmax_scale * kLog2E)};
    if (every_begin > key || every_end < key + scores.keys) {
      for (std::int64_t i = 0; i < tile.count; ++i) {
        begin[i] = tile.begin[i] - static_cast<std::int32_t>(key);
        end[i] = tile.end[i] - static_cast<std::int32_t>(key);
      }
      scores.begin = begin;
      scores.end = end;
    }
    kernel_.multiply({.m = scores.keys,
                      .n = tile.count,
                      .pairs = pairs_of(dims.dim),
                      .a = k_.data() + key * row_,
                      .a_row = row_,
                      .b = lanes_.data(),
                      .c = scores_.data(),
                      .c_row = kPairRows});
    coming_.ask_for_some();
    const bool rescales = kernel_.softmax(scores, {shift, sum, factor}, weights_.data());
    add_values(key, scores, rescales ? factor : nullptr);
  }
  for (std::int64_t i = 0; i < tile.count; ++i) {
    std::copy_n(rows_.data() + i * out_row, out_row, out_.data() + tile.ids[i] * out_row);
    shift_[tile.ids[i]] = shift[i];
    sum_[tile.ids[i]] = sum[i];
  }
}

/// rows = rows * factor + weights V for the keys of a tile of scores.
void PairFold::add_values(std::int64_t key, const PairTile& scores, const float* factor) {
  const PairProduct product{.m = scores.lanes,
                            .n = call_.dims.value_dim,
                            .pairs = pairs_of(scores.keys),
                            .a = weights_.data(),
                            .a_row = 1,
                            .a_pair = kPairRows,
                            .b = v_.data() + key / 2 * kPanel,
                            .b_panel_stride = pairs_of(keys_) * kPanel,
                            .c = rows_.data(),
                            .c_row = call_.out_row(),
                            .c_scale = factor,
                            .accumulate = true};
  if (v_is_finite_ || scores.begin == nullptr) {
    kernel_.multiply(product);
    return;
  }
  multiply_visible(call_.context, kernel_, product, scores.begin, scores.end);
}

}  // namespace moba::cpu
