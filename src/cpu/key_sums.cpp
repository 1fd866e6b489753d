// dv += Pᵀ dO, dk += dSᵀ Q for a few rows at a time.
#include "cpu/key_sums.h"

namespace moba::cpu {

std::int64_t KeySums::bytes(const Dims& dims) {
  return 4 * ((kKeyTile + kRowTile) * (padded(dims.dim) + padded(dims.value_dim)) +
              kRowTile * kPanel * (panels(dims.dim) + panels(dims.value_dim))) +
         KeyOperands::bytes(dims);
}

KeySums::KeySums(Context& context, const AttendBackwardArgs& args, const Dims& dims, const RowTerms& terms)
    : args_(args),
      dims_(dims),
      terms_(terms),
      kernels_(kernels()),
      dk_(context, kKeyTile * padded(dims.dim), "gradients of keys"),
      dv_(context, kKeyTile * padded(dims.value_dim), "gradients of values"),
      q_(context, kRowTile * padded(dims.dim), "query rows"),
      dout_(context, kRowTile * padded(dims.value_dim), "gradients of output rows"),
      q_panels_(context, kRowTile * panels(dims.dim) * kPanel, "query rows"),
      dout_panels_(context, kRowTile * panels(dims.value_dim) * kPanel, "gradients of output rows"),
      operands_(context, dims) {}

void KeySums::begin(std::int64_t first, std::int64_t count, std::int64_t kv_head) {
  operands_.pack(kernels_, rows_of(args_.k, first, kv_head, count), rows_of(args_.v, first, kv_head, count));
  std::fill_n(dk_.data(), count * padded(dims_.dim), 0.0f);
  std::fill_n(dv_.data(), count * padded(dims_.value_dim), 0.0f);
}

void KeySums::add(RowTile& rows, std::int64_t head) {
  const std::int64_t dim = dims_.dim, value_dim = dims_.value_dim;
  const float scale = static_cast<float>(args_.softmax_scale * kLog2E);
  for (std::int64_t i = 0; i < rows.count; ++i) {
    kernels_.load_rows(rows_of(args_.q, rows.ids[i], head, 1), scale, q_.data() + i * padded(dim), padded(dim));
    kernels_.load_rows(rows_of(args_.dout, rows.ids[i], head, 1), 1.0f, dout_.data() + i * padded(value_dim),
                       padded(value_dim));
  }
  const bool q_is_finite =
      kernels_.pack_rows({DType::kFloat32, q_.data(), padded(dim), rows.count, dim}, q_panels_.data());
  const bool dout_is_finite = kernels_.pack_rows(
      {DType::kFloat32, dout_.data(), padded(value_dim), rows.count, value_dim}, dout_panels_.data());

  const std::int64_t first = rows.first_column() / kPanel * kPanel;
  const std::int64_t columns = rows.end_column() - first;
  for (std::int64_t i = 0; i < rows.count; ++i) {
    rows.begin[i] -= static_cast<std::int32_t>(first);
    rows.end[i] -= static_cast<std::int32_t>(first);
  }
  const ScoreTile scores{.scores = operands_.scores.data(),
                         .row_stride = kKeyTile,
                         .rows = rows.count,
                         .columns = columns,
                         .begin = rows.begin,
                         .end = rows.end,
                         .ids = rows.ids};
  operands_.differentiate(kernels_, dims_, scores, first, q_.data(), dout_.data(), nullptr, terms_.of_head(head));
  add_product(rows, first, operands_.scores.data(), dout_panels_.data(), dout_is_finite, value_dim, dv_.data());
  add_product(rows, first, operands_.slopes.data(), q_panels_.data(), q_is_finite, dim, dk_.data());
}

void KeySums::add_product(const RowTile& rows, std::int64_t first, const float* weights, const float* right,
                          bool is_finite, std::int64_t width, float* sums) const {
  Product product{.m = rows.end_column(),
                  .n = width,
                  .k = rows.count,
                  .a = weights,
                  .a_row = 1,
                  .a_column = kKeyTile,
                  .b = right,
                  .b_panel_stride = rows.count * kPanel,
                  .c = sums + first * padded(width),
                  .c_row = padded(width),
                  .accumulate = true};
  if (is_finite) {
    kernels_.multiply(product);
    return;
  }
  // 0 * NaN is NaN: where a row holds one, it is added to exactly the keys that it sees.
  for (std::int64_t i = 0; i < rows.count; ++i) {
    product.m = rows.end[i] - rows.begin[i];
    product.k = 1;
    product.a = weights + i * kKeyTile + rows.begin[i];
    product.b = right + i * kPanel;
    product.c = sums + (first + rows.begin[i]) * padded(width);
    kernels_.multiply(product);
  }
}

}  // namespace moba::cpu
