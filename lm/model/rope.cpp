#include "lm/model/rope.h"

#include <numbers>
#include <vector>

#include "lm/model/row_kernels.h"

namespace moba::lm {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// x itself where the elements of its last axis lie side by side, else a copy: a gradient may be an expanded number.
Tensor last_axis_dense(const Tensor& x) {
  return x.stride(-1) == 1 ? x : x.contiguous();
}

enum class Direction { kForward, kBackward };

/// target[t, h] = source[t, h] turned by the angles of row t (back again for kBackward). Both [T, heads, D], any
/// strides of rows and heads, target not source. Three passes over memory on CUDA, where one kernel reads bfloat16
/// beside float32.
void rotate(Tensor& target, const Tensor& source, const RopeTable& table, Direction direction) {
  const double sign = direction == Direction::kForward ? 1.0 : -1.0;
  if (has_row_kernels(source)) {
    return rotate_rows(target, last_axis_dense(source), table.cos, table.sin, static_cast<float>(sign));
  }
  if (source.is_cpu() && at::isReducedFloatingType(source.scalar_type())) {
    const Tensor wide = source.to(torch::kFloat32);
    Tensor turned = torch::empty_like(wide);
    rotate(turned, wide, table, direction);
    target.copy_(turned);
    return;
  }
  const std::int64_t half = source.size(-1) / 2;
  const auto low = [half](const Tensor& x) { return x.narrow(-1, 0, half); };
  const auto high = [half](const Tensor& x) { return x.narrow(-1, half, half); };
  Tensor target_low = low(target), target_high = high(target);  // [T, heads, D/2]
  at::mul_out(target_low, low(source), table.cos);
  at::mul_out(target_high, high(source), table.cos);
  target_low.addcmul_(high(source), table.sin, -sign);
  target_high.addcmul_(low(source), table.sin, sign);
}

/// The three parts of a fused projection [T, (H + 2 HK) * D] as views [T, heads, D].
struct Parts {
  Tensor q, k, v;
  Parts(const Tensor& qkv, std::int64_t heads, std::int64_t kv_heads) {
    const std::int64_t all = heads + 2 * kv_heads;
    const Tensor by_head = qkv.view({qkv.size(0), all, qkv.size(1) / all});
    q = by_head.narrow(1, 0, heads);
    k = by_head.narrow(1, heads, kv_heads);
    v = by_head.narrow(1, heads + kv_heads, kv_heads);
  }
};

/// Contiguous q, k, v of a fused projection, q and k turned.
variable_list turned_parts(const Tensor& qkv, const RopeTable& table, std::int64_t heads, std::int64_t kv_heads) {
  const Parts parts(qkv, heads, kv_heads);
  Tensor q = at::empty(parts.q.sizes(), qkv.options());
  Tensor k = at::empty(parts.k.sizes(), qkv.options());
  rotate(q, parts.q, table, Direction::kForward);
  rotate(k, parts.k, table, Direction::kForward);
  return {q, k, parts.v.contiguous()};
}

class SplitAndRotate : public torch::autograd::Function<SplitAndRotate> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& qkv, const Tensor& cos, const Tensor& sin,
                               std::int64_t heads, std::int64_t kv_heads) {
    context->save_for_backward({cos, sin});
    context->saved_data["heads"] = heads;
    context->saved_data["kv_heads"] = kv_heads;
    return turned_parts(qkv, {cos, sin}, heads, kv_heads);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const RopeTable table{saved[0], saved[1]};
    const std::int64_t heads = context->saved_data["heads"].toInt();
    const std::int64_t kv_heads = context->saved_data["kv_heads"].toInt();
    const Tensor& dq = gradients[0];  // [T, H, D]
    Tensor dqkv = at::empty({dq.size(0), (heads + 2 * kv_heads) * dq.size(2)}, dq.options());
    Parts parts(dqkv, heads, kv_heads);
    rotate(parts.q, dq, table, Direction::kBackward);  // a rotation's transpose is the rotation back
    rotate(parts.k, gradients[1], table, Direction::kBackward);
    parts.v.copy_(gradients[2]);
    return {dqkv, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor rope_frequencies(const ModelConfig& config) {
  const auto options = torch::TensorOptions().dtype(torch::kFloat32);
  const Tensor exponents = torch::arange(0, config.head_dim, 2, options) / static_cast<double>(config.head_dim);
  Tensor frequencies = 1.0 / torch::pow(config.rope_theta, exponents);
  const RopeScaling& scaling = config.rope_scaling;
  switch (scaling.type) {
    case RopeScaling::Type::kNone: return frequencies;
    case RopeScaling::Type::kLinear: return frequencies / scaling.factor;
    case RopeScaling::Type::kLlama3: break;
  }
  // Waves that turn fewer than low_freq_factor times within the original context are slowed by the factor, those that
  // turn more than high_freq_factor times are left alone, and those between are blended.
  const double context = static_cast<double>(scaling.original_max_position_embeddings);
  const Tensor wavelength = 2.0 * std::numbers::pi / frequencies;
  const Tensor slowed = frequencies / scaling.factor;
  const Tensor blend =
      (context / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  const Tensor blended = (1.0 - blend) * slowed + blend * frequencies;
  const Tensor is_long = wavelength > context / scaling.low_freq_factor;
  const Tensor is_short = wavelength < context / scaling.high_freq_factor;
  return torch::where(is_long, slowed, torch::where(is_short, frequencies, blended));
}

RopeTable rope_table(const Tensor& positions, const Tensor& frequencies) {
  const Tensor angles = positions.to(torch::kFloat32).view({-1, 1, 1}) * frequencies;  // [T, 1, D/2]
  return {angles.cos(), angles.sin()};
}

Tensor packed_positions(const Tensor& cu_seqlens, std::int64_t total) {
  const Tensor starts = cu_seqlens.to(torch::kInt32);
  const Tensor index = torch::arange(total, starts.options());
  // The last start at or before each token; zero-length sequences share a start, and the last of them is found.
  const Tensor sequence = torch::searchsorted(starts, index, /*out_int32=*/true, /*right=*/true) - 1;
  return index - starts.index_select(0, sequence.clamp_min(0));
}

std::tuple<Tensor, Tensor, Tensor> split_and_rotate(const Tensor& qkv, const RopeTable& table, std::int64_t heads,
                                                    std::int64_t kv_heads) {
  const variable_list parts = torch::GradMode::is_enabled()
                                  ? SplitAndRotate::apply(qkv, table.cos, table.sin, heads, kv_heads)
                                  : turned_parts(qkv, table, heads, kv_heads);
  return {parts[0], parts[1], parts[2]};
}

}  // namespace moba::lm
