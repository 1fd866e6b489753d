// dv += Pᵀ dO, dk += dSᵀ Q for 64 rows at a time, by products of bfloat16 pairs: P and dS lie as [keys][rows], so that
// the pairs are neighbouring rows.
#include "cpu/key_sums_pairs.h"

#include "dtype.h"

namespace moba::cpu {

std::int64_t PairKeySums::bytes(const Dims& dims) {
  return 4 * (kKeyTile * (padded(dims.dim) + padded(dims.value_dim)) +
              kPairRows / 2 * kPanel * (panels(dims.dim) + panels(dims.value_dim)) + kPairKeys * kPairRows) +
         PairSlopes::bytes(dims, kKeyTile);
}

PairKeySums::PairKeySums(Context& context, const AttendBackwardArgs& args, const Dims& dims, const RowTerms& terms)
    : args_(args),
      dims_(dims),
      terms_(terms),
      kernel_(*pair_kernels()),
      dk_(context, kKeyTile * padded(dims.dim), "gradients of keys"),
      dv_(context, kKeyTile * padded(dims.value_dim), "gradients of values"),
      q_panels_(context, kPairRows / 2 * panels(dims.dim) * kPanel, "query rows"),
      dout_panels_(context, kPairRows / 2 * panels(dims.value_dim) * kPanel, "gradients of output rows"),
      p_(context, kPairKeys * kPairRows / 2, "a tile of weights"),
      slopes_(context, kPairKeys * kPairRows / 2, "a tile of gradients of scores"),
      operands_(context, args, dims, kKeyTile) {}

void PairKeySums::begin(std::int64_t first, std::int64_t count, std::int64_t kv_head) {
  operands_.load_keys(rows_of(args_.k, first, kv_head, count), rows_of(args_.v, first, kv_head, count));
  std::fill_n(dk_.data(), count * padded(dims_.dim), 0.0f);
  std::fill_n(dv_.data(), count * padded(dims_.value_dim), 0.0f);
}

void PairKeySums::expect(std::int64_t row, std::int64_t head) const {
  for (const ConstTensorView* tensor : {&args_.q, &args_.dout}) {
    const char* at = static_cast<const char*>(rows_of(*tensor, row, head, 1).data);
    for (std::int64_t byte = 0; byte < 2 * tensor->shape[2]; byte += 64) __builtin_prefetch(at + byte, 0, 3);
  }
}

void PairKeySums::add(RowTile& rows, std::int64_t head) {
  const auto gathered = [&](const ConstTensorView& tensor) {
    PairSource source = pair_source(rows_of(tensor, 0, head, rows.count));
    source.ids = rows.ids;
    return source;
  };
  const PairSource q = gathered(args_.q), dout = gathered(args_.dout);
  operands_.load_rows(q, dout, rows.ids, terms_.of_head(head));
  const bool q_is_finite = kernel_.pack_row_pairs(q, q_panels_.data());
  const bool dout_is_finite = kernel_.pack_row_pairs(dout, dout_panels_.data());
  const std::int64_t last = rows.end_column();
  for (std::int64_t key = rows.first_column() / kPairKeys * kPairKeys; key < last; key += kPairKeys) {
    const PairTile tile = operands_.differentiate(key, std::min(kPairKeys, last - key), rows.begin, rows.end, nullptr,
                                                  p_.data(), slopes_.data());
    add_product(rows, tile, key, p_.data(), dout, dout_panels_.data(), dout_is_finite, dv_.data());
    add_product(rows, tile, key, slopes_.data(), q, q_panels_.data(), q_is_finite, dk_.data());
  }
}

/// sums[keys, :] += weights [keys, rows] right [rows, :].
void PairKeySums::add_product(const RowTile& rows, const PairTile& tile, std::int64_t key, const Pair* weights,
                              const PairSource& right, const Pair* right_panels, bool is_finite, float* sums) const {
  const std::int64_t width = padded(right.columns);
  float* to = sums + key * width;
  if (is_finite || tile.begin == nullptr) {
    kernel_.multiply({.m = tile.keys,
                      .n = right.columns,
                      .pairs = pairs_of(rows.count),
                      .a = weights,
                      .a_row = kPairRows / 2,
                      .b = right_panels,
                      .b_panel_stride = pairs_of(rows.count) * kPanel,
                      .c = to,
                      .c_row = width,
                      .accumulate = true});
    return;
  }
  // 0 * NaN is NaN: where a row holds one, each is added to exactly the keys that it sees.
  const auto* numbers = reinterpret_cast<const std::uint16_t*>(weights);
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const std::uint16_t* row = right.data + rows.ids[i] * right.stride;
    for (std::int64_t t = std::max(0, tile.begin[i]); t < std::min<std::int64_t>(tile.keys, tile.end[i]); ++t) {
      const float weight = to_float(BFloat16{numbers[t * kPairRows + i]});
      for (std::int64_t c = 0; c < right.columns; ++c) to[t * width + c] += weight * to_float(BFloat16{row[c]});
    }
  }
}

}  // namespace moba::cpu
