// KvCache over tensors: the core's functions on the CPU; on CUDA the native kernels where they take the problem, pieces
// of the portable backend elsewhere.
#include "moba/kv_cache.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>

#include "arguments.h"
#include "core.h"
#include "moba/device_pages.h"
#include "moba/paged_kv_cache.h"
#include "moba/pipeline.h"
#include "native.h"
#include "operators.h"
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

/// Whether native kernels take this choice over such keys and values.
bool is_native(const at::Tensor& k, const at::Tensor& v, const AttentionOptions& options) {
  if (!k.is_cuda() || !at::hasCUDA() || native_device_problem(k.device().index())) return false;
  const bool sums_logits = options.share == Share::kHead || options.share_score == ShareScore::kSumLogit;
  return !native_limit({.dtype = k.scalar_type(),
                        .head_dim = k.size(2),
                        .value_dim = v.size(2),
                        .block_size = options.block_size,
                        .budget = options.top_k - 1,
                        .sums_logits = sums_logits,
                        .rounded_means = options.representative_dtype == RepresentativeDType::kInput});
}

/// The last rows of a sequence by the operators of the device.
std::tuple<at::Tensor, at::Tensor> attend_natively(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                   const at::Tensor& means, const SequenceBatch& batch,
                                                   const AttentionOptions& options) {
  return as_library([&] {
    const at::Tensor blocks = select_operator().call(
        q, k, batch.cu_seqlens_q, batch.cu_seqlens_k, batch.max_seqlen_q, batch.max_seqlen_k, options.block_size,
        options.top_k, means, options.force_previous, options.sink_blocks, name_of(options.share),
        name_of(options.share_score), name_of(options.representative_dtype), options.softmax_scale);
    return attend_operator(Variant::kDevice)
        .call(q, k, v, batch.cu_seqlens_q, batch.cu_seqlens_k, batch.max_seqlen_q, batch.max_seqlen_k, "list",
              options.block_size, 0, 0, blocks, options.softmax_scale);
  });
}

}  // namespace

/// The cache as the only sequence of a cache in pages: a page for each block, all taken, in their order.
struct KvCache::Pages {
  PagePool pool;
  at::Tensor table, device_table;
  at::Tensor length, device_length;

  Pages(std::int64_t pages, const at::Tensor& like)
      : pool(pages),
        table(at::arange(pages, at::kInt).unsqueeze(0)),
        device_table(table.to(like.device())),
        length(at::zeros({1}, at::kLong)),
        device_length(at::zeros({1}, like.options().dtype(at::kLong))) {}
};

KvCache::KvCache(std::int64_t capacity, std::int64_t kv_heads, std::int64_t head_dim, std::int64_t value_dim,
                 const AttentionOptions& options, at::TensorOptions tensor_options)
    : capacity_(capacity) {
  require(capacity >= 0, "capacity", std::to_string(capacity), "at least 0", "Pass the number of tokens to hold.");
  require(kv_heads >= 1, "kv_heads", std::to_string(kv_heads), "at least 1", "Pass the number of key/value heads.");
  check_options(options);
  const auto allocate = [&](std::int64_t tokens) {
    k_ = at::empty({tokens, kv_heads, head_dim}, tensor_options);
    v_ = at::empty({tokens, kv_heads, value_dim}, tensor_options);
  };
  allocate(0);
  check_queries_and_keys(k_, k_);
  torch_ops::check_values(k_, v_);
  std::int64_t tokens = capacity;
  if (options.kind == Kind::kMoba) {
    block_size_ = options.block_size;
    representative_dtype_ = options.representative_dtype;
    const bool wide = representative_dtype_ == RepresentativeDType::kFloat32;
    representatives_ = at::empty({block_rows(capacity, 1, block_size_), kv_heads, head_dim},
                                 wide ? tensor_options.dtype(accumulator_type(k_)) : tensor_options);
    running_sum_ = at::zeros({kv_heads, head_dim}, tensor_options.dtype(accumulator_type(k_)));
    AttentionOptions least = options;
    least.top_k = 1, least.share = Share::kHead;  // each call has its own
    if (capacity >= block_size_ && is_native(k_, v_, least)) {
      const std::int64_t pages = capacity / block_size_ + (capacity % block_size_ > 0);
      pages_ = std::make_shared<Pages>(pages, k_);
      tokens = pages * block_size_;
    }
  }
  allocate(tokens);
}

void KvCache::set_length(std::int64_t length) {
  length_ = length;
  if (pages_ == nullptr) return;
  pages_->length.fill_(length);
  pages_->device_length.fill_(length);
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
  if (pages_ != nullptr) {
    const at::Tensor k_new = last_axis_contiguous(k), v_new = last_axis_contiguous(v);
    const c10::OptionalDeviceGuard guard(k_.device());
    Engine engine(k_);
    set_length(length_ + count);
    moba::PagedKvCache cache = paged();
    const SequenceTokens part{0, count};
    moba::write(engine.context(), engine.backend(), cache, {&part, 1}, view_of(k_new), view_of(v_new));
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

moba::PagedKvCache KvCache::paged() const {
  moba::PagedKvCache cache;
  cache.k = view_of(k_);
  cache.v = view_of(v_);
  cache.representatives = view_of(representatives_.narrow(0, 0, pages_->pool.pages()));
  cache.running_sums = view_of(running_sum_.unsqueeze(0));
  cache.page_tables = view_of(pages_->table);
  cache.lengths = view_of(pages_->length);
  cache.device_tables = view_of(pages_->device_table);
  cache.device_lengths = view_of(pages_->device_length);
  cache.pool = &pages_->pool;
  cache.page_size = cache.block_size = block_size_;
  return cache;
}

std::tuple<at::Tensor, at::Tensor> KvCache::decode(const at::Tensor& q, const AttentionOptions& options) const {
  const at::Tensor queries = last_axis_contiguous(q);
  at::Tensor out = at::empty({1, q.size(1), v_.size(2)}, q.options());
  at::Tensor lse = at::empty({q.size(1), 1}, q.options().dtype(accumulator_type(q)));
  const c10::OptionalDeviceGuard guard(k_.device());
  Engine engine(k_);
  const SequenceTokens part{0, 1};
  moba::attend_cached(engine.context(), engine.backend(), paged(), {&part, 1}, options, view_of(queries),
                      {view_of(out), view_of(lse)});
  return {out, lse};
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
  const bool native = list && pages_ != nullptr && is_native(k_, v_, options);
  if (native && rows == 1) return decode(q, options);
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
    // Where all blocks are chosen dense kernels do.
    if (native && rows > 0 && options.top_k <= past) return attend_natively(q, k, v, means, batch, options);
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
  set_length(length);
  if (pages_ != nullptr) {
    const c10::OptionalDeviceGuard guard(k_.device());
    Engine engine(k_);
    engine.backend().device_pages()->rebuild_sums(engine.context(), paged(), 0);
  }
}

}  // namespace moba::torch_ops
