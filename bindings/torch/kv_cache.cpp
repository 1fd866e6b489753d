// KvCache over tensors: the core's functions on the CPU, pieces of the portable backend on CUDA.
#include "moba/kv_cache.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "arguments.h"
#include "core.h"
#include "moba/pipeline.h"
#include "portable/decode.h"

namespace moba::torch_ops {
namespace {

moba::KvCache core_cache(const at::Tensor& k, const at::Tensor& v, const at::Tensor& representatives,
                         const at::Tensor& running_sum, std::int64_t block_size, std::int64_t length) {
  moba::KvCache cache;
  cache.k = view_of(k);
  cache.v = view_of(v);
  cache.representatives = view_of(representatives);
  cache.running_sum = view_of(running_sum);
  cache.block_size = block_size;
  cache.length = length;
  return cache;
}

// [0, length] on the device, without a copy from the host.
at::Tensor offsets(std::int64_t length, const at::Tensor& like) {
  return at::arange(0, 2, like.options().dtype(at::kLong)) * length;
}

}  // namespace

KvCache::KvCache(std::int64_t capacity, std::int64_t kv_heads, std::int64_t head_dim, std::int64_t value_dim,
                 const AttentionOptions& options, at::TensorOptions tensor_options) {
  require(capacity >= 0, "capacity", std::to_string(capacity), "at least 0", "Pass the number of tokens to hold.");
  require(kv_heads >= 1, "kv_heads", std::to_string(kv_heads), "at least 1", "Pass the number of key/value heads.");
  check_options(options);
  k_ = at::empty({capacity, kv_heads, head_dim}, tensor_options);
  v_ = at::empty({capacity, kv_heads, value_dim}, tensor_options);
  check_queries_and_keys(k_, k_);
  torch_ops::check_values(k_, v_);
  if (options.kind == Kind::kMoba) {
    block_size_ = options.block_size;
    representative_dtype_ = options.representative_dtype;
    const bool wide = representative_dtype_ == RepresentativeDType::kFloat32;
    representatives_ = at::empty({block_rows(capacity, 1, block_size_), kv_heads, head_dim},
                                 wide ? tensor_options.dtype(accumulator_type(k_)) : tensor_options);
    running_sum_ = at::zeros({kv_heads, head_dim}, tensor_options.dtype(accumulator_type(k_)));
  }
}

void KvCache::append(const at::Tensor& k, const at::Tensor& v) {
  const at::NoGradGuard no_gradients;
  check_queries_and_keys(k_, k);
  torch_ops::check_values(k, v);
  require(k.size(1) == k_.size(1) && v.size(2) == v_.size(2), "k and v",
          "of " + std::to_string(k.size(1)) + " heads and value dim " + std::to_string(v.size(2)),
          "like the cache: " + std::to_string(k_.size(1)) + " heads and value dim " + std::to_string(v_.size(2)),
          "Make a cache for these shapes.");
  const std::int64_t count = k.size(0);
  require(count <= capacity() - length_, "the number of new tokens", std::to_string(count),
          "at most the room left in the cache, " + std::to_string(capacity() - length_),
          "Make the cache with a larger capacity, or truncate it first.");
  if (k_.is_cpu()) {
    moba::KvCache cache = core_cache(k_, v_, representatives_, running_sum_, block_size_, length_);
    TorchContext context;
    const at::Tensor k_new = last_axis_contiguous(k), v_new = last_axis_contiguous(v);
    moba::append(context, cpu_backend_for(k_), cache, view_of(k_new), view_of(v_new));
    length_ = cache.length;
    return;
  }
  k_.narrow(0, length_, count).copy_(k);
  v_.narrow(0, length_, count).copy_(v);
  if (block_size_ > 0) {
    // Blocks that close now, pooled whole from the cached keys: no running sum is needed.
    const std::int64_t first = length_ / block_size_, blocks = (length_ + count) / block_size_ - first;
    if (blocks > 0) {
      const std::int64_t tokens = blocks * block_size_;
      const at::Tensor keys = k_.narrow(0, first * block_size_, tokens), cu = offsets(tokens, k_);
      AttentionOptions options;
      options.block_size = block_size_;
      options.representative_dtype = representative_dtype_;
      const at::Tensor means = portable::pool(keys, {cu, cu, tokens, tokens}, options);
      representatives_.narrow(0, first, blocks).copy_(means.narrow(0, 0, blocks));
    }
  }
  length_ += count;
}

std::tuple<at::Tensor, at::Tensor> KvCache::attend(const at::Tensor& q, const AttentionOptions& options) const {
  const at::NoGradGuard no_gradients;
  check_queries_and_keys(q, k_);
  check_options(options);
  const std::int64_t rows = q.size(0);
  require(rows <= length_, "the number of rows of q", std::to_string(rows),
          "at most the tokens held, " + std::to_string(length_), "Append the keys of these rows first.");
  const bool list = options.kind == Kind::kMoba && !(options.compat_topk1_full && options.top_k == 1);
  require(!list || options.block_size == block_size_, "block_size", std::to_string(options.block_size),
          "that of the cache, " + std::to_string(block_size_),
          "Make the cache for this block size; a cache of another kind serves full and window.");
  require(!list || options.representative_dtype == representative_dtype_, "representative_dtype",
          name_of(options.representative_dtype), std::string("that of the cache, ") + name_of(representative_dtype_),
          "Make the cache for this option.");
  if (k_.is_cpu()) {
    const at::Tensor queries = last_axis_contiguous(q);
    at::Tensor out = at::empty({rows, q.size(1), v_.size(2)}, q.options());
    at::Tensor lse = at::empty({q.size(1), rows}, q.options().dtype(accumulator_type(q)));
    TorchContext context;
    moba::attend_cached(context, cpu_backend_for(k_),
                        core_cache(k_, v_, representatives_, running_sum_, block_size_, length_), options,
                        view_of(queries), {view_of(out), view_of(lse)});
    return {out, lse};
  }
  const at::Tensor k = k_.narrow(0, 0, length_), v = v_.narrow(0, 0, length_);
  const double scale = scale_of(options.softmax_scale, q);
  if (rows == 1 && options.kind != Kind::kWindow && !list) {
    // All keys are one block, the row's own.
    return portable::attend_last(q, k, v, k, length_, 1, scale);
  }
  const SequenceBatch batch{offsets(rows, q), offsets(length_, q), rows, length_};
  portable::TensorSelection selection;
  if (options.kind == Kind::kWindow) {
    selection.kind = SelectionKind::kSpan;
    selection.window = options.window;
    selection.sink = options.sink;
  } else if (list) {
    selection.kind = SelectionKind::kList;
    selection.block_size = block_size_;
    const std::int64_t past = std::max<std::int64_t>(length_ - 1, 0) / block_size_;
    const at::Tensor means = representatives_.narrow(0, 0, block_rows(length_, 1, block_size_));
    if (portable::suits_attend_last(q, k, v, options)) {
      return portable::attend_last(q, k, v, means, block_size_, options.top_k, scale);
    }
    AttentionOptions of_length = options;  // no row has more blocks
    of_length.top_k = std::min(options.top_k, past + 1);
    selection.blocks = portable::select(q, means, batch, of_length);
  }
  return portable::attend(q, k, v, batch, selection, scale);
}

void KvCache::truncate(std::int64_t length) {
  const at::NoGradGuard no_gradients;
  require(length >= 0 && length <= length_, "length", std::to_string(length),
          "between 0 and the tokens held, " + std::to_string(length_), "A cache can only be cut shorter.");
  if (k_.is_cpu()) {
    moba::KvCache cache = core_cache(k_, v_, representatives_, running_sum_, block_size_, length_);
    TorchContext context;
    moba::truncate(context, cpu_backend_for(k_), cache, length);
  }
  length_ = length;
}

}  // namespace moba::torch_ops
