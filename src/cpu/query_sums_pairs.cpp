// dq += dS K for 64 rows at a time, by products of bfloat16 pairs.
#include "cpu/query_sums_pairs.h"

#include "cpu/pairs_visible.h"

namespace moba::cpu {
std::int64_t PairQuerySums::bytes(const AttendBackwardArgs& args, const Dims& dims, std::int64_t ids,
                                  std::int64_t blocks) {
  const std::int64_t words = ids * (pair_row(dims.dim) + padded(dims.dim) + pair_row(dims.value_dim) + 3) +
                             kPairTileKeys / 2 * panels(dims.dim) * kPanel +
                             (kPairKeys / 2 + padded(dims.dim)) * kPairRows;
  return 4 * words + visible_bytes(dims.dim) + PairSlopes::bytes(dims, kPairTileKeys) +
         BlockLists::bytes(args.selection, ids, blocks);
}

PairQuerySums::PairQuerySums(Context& context, const AttendBackwardArgs& args, const Dims& dims,
                             const Sequences& sequences, const RowTerms& terms, std::int64_t ids, std::int64_t blocks)
    : context_(context),
      args_(args),
      dims_(dims),
      sequences_(sequences),
      terms_(terms),
      kernel_(*pair_kernels()),
      q_row_(pair_row(dims.dim)),
      dout_row_(pair_row(dims.value_dim)),
      coming_(args.k, args.v),
      q_(context, ids * q_row_, "query rows"),
      dout_(context, ids * dout_row_, "gradients of output rows"),
      k_panels_(context, kPairTileKeys / 2 * panels(dims.dim) * kPanel, "a tile of keys"),
      weights_(context, kPairKeys / 2 * kPairRows, "a tile of gradients of scores"),
      rows_(context, kPairRows * padded(dims.dim), "gradients of query rows of a tile"),
      dq_(context, ids * padded(dims.dim), "gradients of query rows"),
      lse_(context, ids, "lse of each row"),
      delta_(context, ids, "delta of each row"),
      dlse_(context, ids, "dlse of each row"),
      operands_(context, args, dims, kPairTileKeys),
      lists_(context, args.selection, ids, blocks) {}

void PairQuerySums::load(const Chunk& chunk, std::int64_t kv_head) {
  for (std::int64_t h = 0; h < dims_.group; ++h) {
    const std::int64_t head = kv_head * dims_.group + h, id = h * chunk.rows;
    kernel_.copy_rows(pair_source(rows_of(args_.q, chunk.row_begin, head, chunk.rows)), q_.data() + id * q_row_,
                      q_row_);
    kernel_.copy_rows(pair_source(rows_of(args_.dout, chunk.row_begin, head, chunk.rows)),
                      dout_.data() + id * dout_row_, dout_row_);
    const RowTermsView of_head = terms_.of_head(head);
    std::copy_n(of_head.lse + chunk.row_begin, chunk.rows, lse_.data() + id);
    std::copy_n(of_head.delta + chunk.row_begin, chunk.rows, delta_.data() + id);
    std::copy_n(of_head.dlse + chunk.row_begin, chunk.rows, dlse_.data() + id);
  }
  std::fill_n(dq_.data(), dims_.group * chunk.rows * padded(dims_.dim), 0.0f);
}

void PairQuerySums::run(const Chunk& chunk, std::int64_t kv_head) {
  load(chunk, kv_head);
  const Sequence sequence = sequences_[chunk.sequence];
  if (args_.selection.kind == SelectionKind::kList) {
    lists_.fill(context_, args_.selection, sequence, chunk, kv_head, dims_);
  }
  for_each_tile(
      args_.selection, sequence, chunk, dims_, lists_, TileShape{kPairRows, kPairTileKeys},
      [&](std::int64_t key, std::int64_t keys) {
        const Rows k = rows_of(args_.k, sequence.k_begin + key, kv_head, keys);
        operands_.load_keys(k, rows_of(args_.v, sequence.k_begin + key, kv_head, keys));
        k_is_finite_ = kernel_.pack_row_pairs(pair_source(k), k_panels_.data());
        keys_ = keys;
        coming_.begin(sequence.k_begin + key + keys, sequence.k_begin + std::min(sequence.k_length, key + 2 * keys),
                      kv_head);
      },
      [&](const RowTile& tile) { add_tile(tile); });
  for (std::int64_t id = 0; id < dims_.group * chunk.rows; ++id) {
    kernels().store_row(
        dq_.data() + id * padded(dims_.dim), static_cast<float>(args_.softmax_scale), dims_.dim, args_.dq.dtype,
        row_pointer(args_.dq, chunk.row_begin + id % chunk.rows, kv_head * dims_.group + id / chunk.rows));
  }
}

void PairQuerySums::add_tile(const RowTile& tile) {
  const auto gathered = [&](const Scratch<Pair>& rows, std::int64_t row, std::int64_t columns) {
    return PairSource{reinterpret_cast<const std::uint16_t*>(rows.data()), 2 * row, tile.ids, tile.count, columns};
  };
  operands_.load_rows(gathered(q_, q_row_, dims_.dim), gathered(dout_, dout_row_, dims_.value_dim), tile.ids,
                      {lse_.data(), delta_.data(), dlse_.data()});
  const std::int64_t width = padded(dims_.dim);
  for (std::int64_t i = 0; i < tile.count; ++i) {
    std::copy_n(dq_.data() + tile.ids[i] * width, width, rows_.data() + i * width);
  }
  const std::int64_t last = tile.end_column();
  for (std::int64_t key = tile.first_column() / kPairKeys * kPairKeys; key < last; key += kPairKeys) {
    const std::int64_t count = std::min(kPairKeys, last - key);
    operands_.differentiate(key, count, tile.begin, tile.end, weights_.data(), nullptr, nullptr);
    coming_.ask_for_some();
    const PairProduct product{.m = tile.count,
                              .n = dims_.dim,
                              .pairs = pairs_of(count),
                              .a = weights_.data(),
                              .a_row = 1,
                              .a_pair = kPairRows,
                              .b = k_panels_.data() + key / 2 * kPanel,
                              .b_panel_stride = pairs_of(keys_) * kPanel,
                              .c = rows_.data(),
                              .c_row = width,
                              .accumulate = true};
    if (k_is_finite_) {
      kernel_.multiply(product);
      continue;
    }
    std::int32_t begin[kPairRows], end[kPairRows];
    for (std::int64_t i = 0; i < tile.count; ++i) {
      const bool empty = lse_[tile.ids[i]] == kNegativeInfinity;  // such a row has no gradient, whatever it sees
      begin[i] = tile.begin[i] - static_cast<std::int32_t>(key);
      end[i] = empty ? begin[i] : tile.end[i] - static_cast<std::int32_t>(key);
    }
    multiply_visible(context_, kernel_, product, begin, end);
  }
  for (std::int64_t i = 0; i < tile.count; ++i) {
    std::copy_n(rows_.data() + i * width, width, dq_.data() + tile.ids[i] * width);
  }
}

}  // namespace moba::cpu
