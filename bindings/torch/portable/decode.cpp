#include "portable/decode.h"

#include <algorithm>

#include "portable/choice.h"
#include "portable/numbers.h"
#include "portable/segments.h"

namespace moba::torch_ops::portable {
namespace {

// Beyond this the general path, which reads each block once for all heads, is as fast.
constexpr std::int64_t kMaxCopiedBytes = std::int64_t{64} << 20;

std::int64_t past_blocks(const at::Tensor& k, std::int64_t block_size) {
  return (k.size(0) - 1) / block_size;
}

// What one token attends of its past, each query head its own blocks.
struct Chosen {
  at::Tensor k, v;    // [H, count * B, D], [H, count * B, Dv]
  at::Tensor hidden;  // bool [H, count]: no choice after all
};

// x [Tk, HK, X], index int64 [H, count] -> [H, count, B, X].
at::Tensor blocks_of(const at::Tensor& x, const at::Tensor& key_head, const at::Tensor& index, std::int64_t past,
                     std::int64_t block_size) {
  const at::Tensor blocks = x.narrow(0, 0, past * block_size).unflatten(0, {past, block_size}).permute({2, 0, 1, 3});
  return blocks.index({key_head, index});
}

Chosen choose(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& representatives,
              std::int64_t block_size, std::int64_t count) {
  const std::int64_t kv_heads = k.size(1), heads = q.size(1), past = past_blocks(k, block_size);
  at::Tensor scores = product(q.reshape({kv_heads, heads / kv_heads, q.size(2)}),
                              representatives.narrow(0, 0, past).permute({1, 2, 0}));
  forget_nan(scores);
  const std::int64_t width = round_up(past, candidate_step(past));
  if (width > past) scores = at::constant_pad_nd(scores, {0, width - past}, -kInfinity);
  auto [index, chosen] = best(scores, count);
  Chosen result;
  result.hidden = chosen.logical_not().view({heads, count});
  const at::Tensor safe_index = index.masked_fill(result.hidden.view(index.sizes()), 0).view({heads, count});
  const at::Tensor key_head = at::floor_divide(range(heads, index), heads / kv_heads).unsqueeze(1);
  result.k = blocks_of(k, key_head, safe_index, past, block_size).flatten(1, 2);
  // Zeros in the place of what is no choice: its probability is 0, and 0 times NaN would be NaN.
  result.v = blocks_of(v, key_head, safe_index, past, block_size)
                 .masked_fill_(result.hidden.unsqueeze(-1).unsqueeze(-1), 0.0)
                 .flatten(1, 2);
  return result;
}

}  // namespace

bool suits_attend_last(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionOptions& options) {
  if (q.size(0) != 1 || k.size(0) < 1) return false;
  if (options.force_previous || options.sink_blocks > 0 || options.share != Share::kHead) return false;
  if (options.representative_dtype != RepresentativeDType::kInput) return false;
  const std::int64_t count = std::min(options.top_k - 1, past_blocks(k, options.block_size));
  return count * options.block_size * q.size(1) * (k.size(2) + v.size(2)) * q.element_size() <= kMaxCopiedBytes;
}

std::tuple<at::Tensor, at::Tensor> attend_last(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                               const at::Tensor& representatives, std::int64_t block_size,
                                               std::int64_t top_k, double softmax_scale) {
  const std::int64_t kv_heads = k.size(1), heads = q.size(1), group = heads / kv_heads, value_dim = v.size(2);
  const std::int64_t past = past_blocks(k, block_size), count = std::min(top_k - 1, past);
  const at::Tensor own_k = k.slice(0, past * block_size).transpose(0, 1);  // [HK, own, D]
  const at::Tensor own_v = v.slice(0, past * block_size).transpose(0, 1);
  const std::int64_t own = own_k.size(1);
  at::Tensor scores =
      product(q.reshape({kv_heads, group, q.size(2)}), own_k.transpose(1, 2)).view({heads, own});  // [H, keys]
  Chosen chosen;
  if (count > 0) {
    chosen = choose(q, k, v, representatives, block_size, count);
    const at::Tensor listed =
        product(q.reshape({heads, 1, q.size(2)}), chosen.k.transpose(1, 2)).view({heads, count, block_size});
    scores = at::cat({scores, listed.masked_fill(chosen.hidden.unsqueeze(-1), -kInfinity).flatten(1)}, 1);
  }
  scores.mul_(softmax_scale);
  const at::Tensor lse = at::logsumexp(scores, {1}, /*keepdim=*/true);
  const at::Tensor p = at::exp(scores - lse).to(q.scalar_type());
  at::Tensor out = product(p.narrow(1, 0, own).reshape({kv_heads, group, own}), own_v).view({heads, value_dim});
  if (count > 0) out = out + product(p.slice(1, own).unsqueeze(1), chosen.v).view({heads, value_dim});
  return {out.to(q.scalar_type()).unsqueeze(0), lse};
}

}  // namespace moba::torch_ops::portable
