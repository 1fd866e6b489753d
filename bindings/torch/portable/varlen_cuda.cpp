// The varlen seam on CUDA: ATen's FlashAttention-2 kernels for float16 and bfloat16 from compute capability 8.0 on, its
// memory-efficient kernels for float32 and older cards. Reached through the dispatcher, so nothing of CUDA is linked.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda_device.h"
#include "moba/error.h"
#include "portable/aligned.h"
#include "portable/numbers.h"
#include "portable/varlen.h"

namespace moba::torch_ops::portable {
namespace {

constexpr std::int64_t kHeadDimStep = 8;   // both kernels read rows in 16-byte pieces
constexpr std::int64_t kMaxHeadDim = 256;  // FlashAttention-2
constexpr std::int64_t kEfficientLseStep = 32;
// Segments are an axis of the launch grid, and `without_blind_rows` doubles them.
constexpr std::int64_t kMaxLaunchSegments = 65535 / 2;
constexpr std::int64_t kMaskNone = 0, kMaskBottomRight = 2;  // custom_mask_type of the memory-efficient kernel

bool uses_flash(const at::Tensor& q) {
  return q.scalar_type() != at::kFloat && compute_capability(q.device().index()) >= 8;
}

// Zero columns up to `width`, and rows that start on 16 bytes.
at::Tensor prepare(const at::Tensor& x, std::int64_t width) {
  if (x.size(-1) != width) return at::constant_pad_nd(x, {0, width - x.size(-1)});
  const std::int64_t align = 16 / x.element_size();
  const bool aligned = x.stride(-1) == 1 && x.stride(0) % align == 0 && x.stride(1) % align == 0 &&
                       reinterpret_cast<std::uintptr_t>(x.const_data_ptr()) % 16 == 0;
  return aligned ? x : x.clone(at::MemoryFormat::Contiguous);
}

struct Widths {
  std::int64_t key, value;
};

Widths padded_widths(std::int64_t head_dim, std::int64_t value_dim, bool flash) {
  Widths widths{round_up(head_dim, kHeadDimStep), round_up(value_dim, kHeadDimStep)};
  if (flash) widths.key = widths.value = std::max(widths.key, widths.value);
  if (flash && widths.key > kMaxHeadDim) {
    throw Error(ErrorCode::kUnsupported, "head_dim " + std::to_string(head_dim) + " and value_dim " +
                                             std::to_string(value_dim) +
                                             ": the portable CUDA backend takes at most 256 of each; use the CPU.");
  }
  return widths;
}

// To the flash kernel max_q == 1 means that every segment has exactly one query, and it then ignores cu_q. Segments of
// ours may be empty, so it is told 2.
std::int64_t flash_max_q(const Segments& segments) {
  return std::max<std::int64_t>(segments.max_q, 2);
}

std::optional<std::int64_t> window_left(const Segments& segments) {
  return segments.window > 0 ? std::optional<std::int64_t>(segments.window - 1) : std::nullopt;
}

std::optional<std::int64_t> window_right(const Segments& segments) {
  return segments.window > 0 ? std::optional<std::int64_t>(0) : std::nullopt;
}

std::int64_t count_of(const Segments& segments) {
  return segments.cu_q.size(0) - 1;
}

std::vector<Segments> launches_of(const Segments& segments) {
  std::vector<Segments> launches;
  for (std::int64_t begin = 0; begin < count_of(segments); begin += kMaxLaunchSegments) {
    const std::int64_t end = std::min(begin + kMaxLaunchSegments, count_of(segments));
    launches.push_back(segments);
    launches.back().cu_q = segments.cu_q.slice(0, begin, end + 1);
    launches.back().cu_k = segments.cu_k.slice(0, begin, end + 1);
  }
  return launches;
}

// Kernels leave the gradient of keys without queries unset.
void zero_unseen_keys(at::Tensor& dk, at::Tensor& dv, const Segments& segments) {
  if (segments.every_key_has_rows) return;
  const at::Tensor has_rows = segments.cu_q.slice(0, 1) > segments.cu_q.slice(0, 0, -1);
  const at::Tensor unseen = has_rows.index_select(0, segment_of(segments.cu_k, dk.size(0)))
                                .logical_and_(inside(segments.cu_k, dk.size(0)))
                                .logical_not_()
                                .view({-1, 1, 1});
  dk.masked_fill_(unseen, 0.0);
  dv.masked_fill_(unseen, 0.0);
}

// ---- FlashAttention-2 ----

std::tuple<at::Tensor, at::Tensor> flash_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                 const Segments& segments, double softmax_scale) {
  const std::int64_t value_dim = v.size(2);
  const Widths widths = padded_widths(q.size(2), value_dim, true);
  auto [out, lse, seed, offset, mask] = at::_flash_attention_forward(
      prepare(q, widths.key), prepare(k, widths.key), prepare(v, widths.value), segments.cu_q, segments.cu_k,
      flash_max_q(segments), segments.max_k, /*dropout_p=*/0.0, segments.causal, /*return_debug_mask=*/false,
      softmax_scale, window_left(segments), window_right(segments));
  // The kernel writes +inf where a row has no key.
  lse = lse.masked_fill(lse == kInfinity, -kInfinity);
  return {value_dim == widths.value ? out : out.narrow(2, 0, value_dim), lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> flash_backward(const at::Tensor& dout, const at::Tensor& q,
                                                              const at::Tensor& k, const at::Tensor& v,
                                                              const at::Tensor& out, const at::Tensor& lse,
                                                              const Segments& segments, double softmax_scale) {
  const std::int64_t head_dim = q.size(2), value_dim = v.size(2);
  const Widths widths = padded_widths(head_dim, value_dim, true);
  const at::Tensor rng_state = at::zeros({2}, q.options().dtype(at::kUInt64));
  auto [dq, dk, dv] = at::_flash_attention_backward(
      prepare(dout, widths.value), prepare(q, widths.key), prepare(k, widths.key), prepare(v, widths.value),
      prepare(out, widths.value), lse.masked_fill(lse == -kInfinity, kInfinity), segments.cu_q, segments.cu_k,
      flash_max_q(segments), segments.max_k, /*dropout_p=*/0.0, segments.causal, rng_state, at::empty({}, q.options()),
      softmax_scale, window_left(segments), window_right(segments));
  zero_unseen_keys(dk, dv, segments);
  return {dq.narrow(2, 0, head_dim), dk.narrow(2, 0, head_dim), dv.narrow(2, 0, value_dim)};
}

// ---- memory-efficient attention ----

// It knows no groups: the kernel runs once for each query head of a group, over all key heads. [T, H, X] -> [1, T, HK,
// X].
at::Tensor group_member(const at::Tensor& x, std::int64_t kv_heads, std::int64_t member) {
  return x.view({x.size(0), kv_heads, -1, x.size(2)}).select(2, member).unsqueeze(0);
}

// The kernel's lse is [segments, heads, max_q rounded up]; ours is [heads, rows].
struct LseIndex {
  at::Tensor segment, row;  // int64 [rows]
  at::Tensor covered;       // bool [rows]
  std::int64_t max_q;       // the kernel wants bounds that do not exceed the tensors
  std::int64_t width;
};

LseIndex lse_index(const Segments& segments, std::int64_t rows) {
  LseIndex index;
  index.max_q = std::min(segments.max_q, rows);
  index.width = round_up(index.max_q, kEfficientLseStep);
  index.segment = segment_of(segments.cu_q, rows);
  const at::Tensor row = at::arange(rows, segments.cu_q.options()) - segments.cu_q.index_select(0, index.segment);
  const at::Tensor end = segments.cu_q.index_select(0, index.segment + 1);
  index.covered =
      (row >= 0).logical_and_(at::arange(rows, segments.cu_q.options()) < end).logical_and_(row < index.max_q);
  index.row = row.to(at::kLong).clamp_(0, index.width - 1);
  return index;
}

// Rows of segments without keys; `without_blind_rows` has left no others that see none.
at::Tensor blind_rows(const Segments& segments, const LseIndex& index) {
  return segments.cu_k.index_select(0, index.segment + 1) <= segments.cu_k.index_select(0, index.segment);
}

std::tuple<at::Tensor, at::Tensor> efficient_aligned(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                     const Segments& segments, double softmax_scale) {
  const std::int64_t kv_heads = k.size(1), group = q.size(1) / kv_heads, value_dim = v.size(2);
  const Widths widths = padded_widths(q.size(2), value_dim, false);
  const at::Tensor qp = prepare(q, widths.key).contiguous(), kp = prepare(k, widths.key).unsqueeze(0);
  const at::Tensor vp = prepare(v, widths.value).unsqueeze(0);
  const LseIndex index = lse_index(segments, q.size(0));
  const at::Tensor blind = blind_rows(segments, index);
  at::Tensor out = at::empty({q.size(0), kv_heads, group, value_dim}, q.options());
  at::Tensor lse = at::empty({kv_heads, group, q.size(0)}, q.options().dtype(at::kFloat));
  for (std::int64_t member = 0; member < group; ++member) {
    auto [part, part_lse, seed, offset, max_q, max_k] = at::_efficient_attention_forward(
        group_member(qp, kv_heads, member), kp, vp, /*bias=*/{}, segments.cu_q, segments.cu_k, index.max_q,
        std::min(segments.max_k, k.size(0)), /*dropout_p=*/0.0, segments.causal ? kMaskBottomRight : kMaskNone,
        /*compute_log_sumexp=*/true, softmax_scale, /*seqlen_k=*/{},
        segments.window > 0 ? std::optional<std::int64_t>(segments.window) : std::nullopt);
    out.select(2, member).copy_(part.squeeze(0).narrow(2, 0, value_dim));
    // part_lse[segment, :, row] -> [rows, heads]
    lse.select(1, member).copy_(part_lse.transpose(1, 2).index({index.segment, index.row}).transpose(0, 1));
  }
  out.masked_fill_(blind.view({-1, 1, 1, 1}), 0.0);
  lse.masked_fill_(blind, -kInfinity);
  return {out.view({q.size(0), q.size(1), value_dim}), lse.view({q.size(1), q.size(0)})};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> efficient_backward_aligned(const at::Tensor& dout, const at::Tensor& q,
                                                                          const at::Tensor& k, const at::Tensor& v,
                                                                          const at::Tensor& out, const at::Tensor& lse,
                                                                          const Segments& segments,
                                                                          double softmax_scale) {
  const std::int64_t kv_heads = k.size(1), group = q.size(1) / kv_heads;
  const std::int64_t head_dim = q.size(2), value_dim = v.size(2);
  const Widths widths = padded_widths(head_dim, value_dim, false);
  const at::Tensor qp = prepare(q, widths.key).contiguous(), kp = prepare(k, widths.key).unsqueeze(0);
  const at::Tensor vp = prepare(v, widths.value).unsqueeze(0), op = prepare(out, widths.value).contiguous();
  const at::Tensor dop = prepare(dout, widths.value).contiguous();
  const LseIndex index = lse_index(segments, q.size(0));
  const std::int64_t count = segments.cu_q.size(0) - 1;
  const at::Tensor seed = at::zeros({}, q.options().dtype(at::kLong));
  at::Tensor dq = at::empty({q.size(0), kv_heads, group, head_dim}, q.options());
  at::Tensor dk = at::zeros({k.size(0), kv_heads, head_dim}, k.options().dtype(at::kFloat));
  at::Tensor dv = at::zeros({v.size(0), kv_heads, value_dim}, v.options().dtype(at::kFloat));
  // Rows of no segment share their clamped place with real rows, so they are sent to a spare segment.
  const at::Tensor target = at::where(index.covered, index.segment, at::scalar_tensor(count, index.segment.options()));
  for (std::int64_t member = 0; member < group; ++member) {
    at::Tensor padded = at::full({count + 1, index.width, kv_heads}, kInfinity, lse.options());
    const at::Tensor member_lse = lse.view({kv_heads, group, -1}).select(1, member).transpose(0, 1);
    padded.index_put_({target, index.row}, member_lse.masked_fill(member_lse == -kInfinity, kInfinity));
    auto [part_dq, part_dk, part_dv, dbias] = at::_efficient_attention_backward(
        group_member(dop, kv_heads, member), group_member(qp, kv_heads, member), kp, vp, /*bias=*/{},
        group_member(op, kv_heads, member).contiguous(), segments.cu_q, segments.cu_k, index.max_q,
        std::min(segments.max_k, k.size(0)), padded.narrow(0, 0, count).transpose(1, 2).contiguous(),
        /*dropout_p=*/0.0, seed, seed, segments.causal ? kMaskBottomRight : kMaskNone, /*bias_requires_grad=*/false,
        softmax_scale, /*num_splits_key=*/{},
        segments.window > 0 ? std::optional<std::int64_t>(segments.window) : std::nullopt);
    zero_unseen_keys(part_dk = part_dk.squeeze(0), part_dv = part_dv.squeeze(0), segments);
    dq.select(2, member).copy_(part_dq.squeeze(0).narrow(2, 0, head_dim));
    dk.add_(part_dk.narrow(2, 0, head_dim));
    dv.add_(part_dv.narrow(2, 0, value_dim));
  }
  dq.masked_fill_(blind_rows(segments, index).view({-1, 1, 1, 1}), 0.0);
  return {dq.view({q.size(0), q.size(1), head_dim}), dk.to(k.scalar_type()), dv.to(v.scalar_type())};
}

// The kernel refuses more queries than keys, and with a window is right for as many queries as keys only.
std::tuple<at::Tensor, at::Tensor> efficient_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                     const Segments& segments, double softmax_scale) {
  const Segments seeing = without_blind_rows(segments);
  if (segments.window == 0) return efficient_aligned(q, k, v, seeing, softmax_scale);
  const QueriesBesideKeys beside(seeing, q.size(0), k.size(0));
  const auto [out, lse] = efficient_aligned(beside.gather(q), k, v, beside.segments(), softmax_scale);
  return {beside.scatter(out, 0.0), beside.scatter(lse.transpose(0, 1), -kInfinity).transpose(0, 1)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> efficient_backward(const at::Tensor& dout, const at::Tensor& q,
                                                                  const at::Tensor& k, const at::Tensor& v,
                                                                  const at::Tensor& out, const at::Tensor& lse,
                                                                  const Segments& segments, double softmax_scale) {
  const Segments seeing = without_blind_rows(segments);
  if (segments.window == 0) return efficient_backward_aligned(dout, q, k, v, out, lse, seeing, softmax_scale);
  const QueriesBesideKeys beside(seeing, q.size(0), k.size(0));
  const auto [dq, dk, dv] = efficient_backward_aligned(beside.gather(dout), beside.gather(q), k, v, beside.gather(out),
                                                       beside.gather_lse(lse), beside.segments(), softmax_scale);
  return {beside.scatter(dq, 0.0), dk, dv};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> varlen_forward_cuda(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                       const Segments& segments, double softmax_scale) {
  const auto run = [&](const Segments& some) {
    return uses_flash(q) ? flash_forward(q, k, v, some, softmax_scale)
                         : efficient_forward(q, k, v, some, softmax_scale);
  };
  if (count_of(segments) <= kMaxLaunchSegments) return run(segments);
  at::Tensor out = at::zeros({q.size(0), q.size(1), v.size(2)}, q.options());
  at::Tensor lse = at::full({q.size(1), q.size(0)}, -kInfinity, q.options().dtype(at::kFloat));
  for (const Segments& launch : launches_of(segments)) {
    auto [part, part_lse] = run(launch);
    const at::Tensor rows = inside(launch.cu_q, q.size(0));
    out = at::where(rows.view({-1, 1, 1}), part, out);
    lse = at::where(rows, part_lse, lse);
  }
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> varlen_backward_cuda(const at::Tensor& dout, const at::Tensor& q,
                                                                    const at::Tensor& k, const at::Tensor& v,
                                                                    const at::Tensor& out, const at::Tensor& lse,
                                                                    const Segments& segments, double softmax_scale) {
  const auto run = [&](const Segments& some) {
    return uses_flash(q) ? flash_backward(dout, q, k, v, out, lse, some, softmax_scale)
                         : efficient_backward(dout, q, k, v, out, lse, some, softmax_scale);
  };
  if (count_of(segments) <= kMaxLaunchSegments) return run(segments);
  at::Tensor dq = at::zeros(q.sizes(), q.options());
  at::Tensor dk = at::zeros(k.sizes(), k.options()), dv = at::zeros(v.sizes(), v.options());
  for (const Segments& launch : launches_of(segments)) {
    auto [part_dq, part_dk, part_dv] = run(launch);
    const at::Tensor keys = inside(launch.cu_k, k.size(0)).view({-1, 1, 1});
    dq = at::where(inside(launch.cu_q, q.size(0)).view({-1, 1, 1}), part_dq, dq);
    dk = at::where(keys, part_dk, dk);
    dv = at::where(keys, part_dv, dv);
  }
  return {dq, dk, dv};
}

}  // namespace moba::torch_ops::portable
