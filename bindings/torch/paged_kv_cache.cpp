#include "moba_torch/paged_kv_cache.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>

#include <limits>

#include "checks.h"
#include "core.h"
#include "native.h"

namespace moba::torch_ops {
namespace {

void check_sizes(const PagedKvCache::Sizes& sizes) {
  require(sizes.page_size >= 1, "page_size", std::to_string(sizes.page_size), "at least 1 token",
          "Usual values are 16 to 256.");
  require(sizes.sequences >= 0, "sequences", std::to_string(sizes.sequences), "at least 0",
          "Pass how many sequences there may be at a time.");
  require(sizes.capacity >= 0, "capacity", std::to_string(sizes.capacity), "at least 0",
          "Pass the most tokens of one sequence.");
  require(sizes.kv_heads >= 1, "kv_heads", std::to_string(sizes.kv_heads), "at least 1",
          "Pass the number of key/value heads.");
  require(sizes.pages <= std::numeric_limits<std::int64_t>::max() / sizes.page_size, "page_size",
          std::to_string(sizes.page_size), "of fewer than 2^63 tokens in all", "Make the pages smaller.");
}

std::int64_t pages_for(const PagedKvCache::Sizes& sizes) {
  return sizes.capacity / sizes.page_size + (sizes.capacity % sizes.page_size > 0);
}

/// On a GPU there are the native kernels and nothing else.
void check_device(const PagedKvCache::Sizes& sizes, const AttentionOptions& options,
                  const at::TensorOptions& tensor_options) {
  const at::Device device = tensor_options.device();
  if (device.is_cpu()) return;
  std::optional<std::string> problem;
  if (!device.is_cuda()) {
    problem = "pages are kept on the CPU and on CUDA devices";
  } else if (!at::hasCUDA()) {
    problem = "torch sees no CUDA device";
  } else if (!(problem = native_device_problem(device.has_index() ? device.index() : 0))) {
    const bool moba = options.kind == Kind::kMoba;
    const bool rounded = !moba || options.representative_dtype == RepresentativeDType::kInput;
    problem = native_limit({.dtype = c10::typeMetaToScalarType(tensor_options.dtype()),
                            .head_dim = sizes.head_dim,
                            .value_dim = sizes.value_dim,
                            .block_size = moba ? options.block_size : std::int64_t{1} << 20,
                            .rounded_means = rounded});
  }
  if (!problem) return;
  throw Error(ErrorCode::kUnsupported, "device is " + device.str() + "; pages there need the native kernels, but " +
                                           *problem + ". Use a KvCache for each sequence, or device 'cpu'.");
}

}  // namespace

PagedKvCache::PagedKvCache(const Sizes& sizes, const AttentionOptions& options, at::TensorOptions tensor_options)
    : pool_(sizes.pages), page_size_(sizes.page_size) {
  check_sizes(sizes);
  check_options(options);
  check_device(sizes, options, tensor_options);
  const c10::OptionalDeviceGuard guard(tensor_options.device());
  const std::int64_t tokens = sizes.pages * sizes.page_size;
  k_ = at::empty({tokens, sizes.kv_heads, sizes.head_dim}, tensor_options);
  v_ = at::empty({tokens, sizes.kv_heads, sizes.value_dim}, tensor_options);
  check_queries_and_keys(k_, k_);
  torch_ops::check_values(k_, v_);
  if (options.kind == Kind::kMoba) {
    block_size_ = options.block_size;
    representative_dtype_ = options.representative_dtype;
    const bool wide = representative_dtype_ == RepresentativeDType::kFloat32;
    representatives_ = at::empty({sizes.pages, sizes.kv_heads, sizes.head_dim},
                                 wide ? tensor_options.dtype(accumulator_type(k_)) : tensor_options);
    running_sums_ =
        at::zeros({sizes.sequences, sizes.kv_heads, sizes.head_dim}, tensor_options.dtype(accumulator_type(k_)));
  }
  page_tables_ = at::full({sizes.sequences, pages_for(sizes)}, -1, at::kInt);
  lengths_ = at::zeros({sizes.sequences}, at::kLong);
  if (k_.is_cuda()) {
    device_tables_ = page_tables_.to(k_.device());
    device_lengths_ = lengths_.to(k_.device());
  }
  Engine engine(k_);
  moba::PagedKvCache cache = core();
  moba::append(engine.context(), engine.backend(), cache, {}, view_of(k_.narrow(0, 0, 0)), view_of(v_.narrow(0, 0, 0)));
}

moba::PagedKvCache PagedKvCache::core() const {
  moba::PagedKvCache cache;
  cache.k = view_of(k_);
  cache.v = view_of(v_);
  cache.representatives = view_of(representatives_);
  cache.running_sums = view_of(running_sums_);
  cache.page_tables = view_of(page_tables_);
  cache.lengths = view_of(lengths_);
  cache.device_tables = view_of(device_tables_);
  cache.device_lengths = view_of(device_lengths_);
  cache.pool = &pool_;
  cache.page_size = page_size_;
  cache.block_size = block_size_;
  return cache;
}

void PagedKvCache::append(std::span<const SequenceTokens> parts, const at::Tensor& k, const at::Tensor& v) {
  const at::NoGradGuard no_gradients;
  check_queries_and_keys(k_, k);
  torch_ops::check_values(k, v);
  const c10::OptionalDeviceGuard guard(k_.device());
  Engine engine(k_);
  moba::PagedKvCache cache = core();
  const at::Tensor k_new = last_axis_contiguous(k), v_new = last_axis_contiguous(v);
  moba::append(engine.context(), engine.backend(), cache, parts, view_of(k_new), view_of(v_new));
}

void PagedKvCache::grow(std::span<const SequenceTokens> parts) {
  const c10::OptionalDeviceGuard guard(k_.device());
  Engine engine(k_);
  moba::PagedKvCache cache = core();
  moba::grow(engine.context(), engine.backend(), cache, parts);
}

void PagedKvCache::write(std::span<const SequenceTokens> parts, const at::Tensor& k, const at::Tensor& v) {
  const at::NoGradGuard no_gradients;
  check_queries_and_keys(k_, k);
  torch_ops::check_values(k, v);
  const c10::OptionalDeviceGuard guard(k_.device());
  Engine engine(k_);
  moba::PagedKvCache cache = core();
  const at::Tensor k_new = last_axis_contiguous(k), v_new = last_axis_contiguous(v);
  moba::write(engine.context(), engine.backend(), cache, parts, view_of(k_new), view_of(v_new));
}

std::tuple<at::Tensor, at::Tensor> PagedKvCache::attend(std::span<const SequenceTokens> parts, const at::Tensor& q,
                                                        const AttentionOptions& options, ReadCount* reads) const {
  const at::NoGradGuard no_gradients;
  check_queries_and_keys(q, k_);
  check_options(options);
  const bool list = options.kind == Kind::kMoba && !(options.compat_topk1_full && options.top_k == 1);
  require(!list || options.representative_dtype == representative_dtype_, "representative_dtype",
          name_of(options.representative_dtype), std::string("that of the cache, ") + name_of(representative_dtype_),
          "Make the cache for this option.");
  const at::Tensor queries = last_axis_contiguous(q);
  at::Tensor out = at::empty({q.size(0), q.size(1), v_.size(2)}, q.options());
  at::Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(accumulator_type(q)));
  const c10::OptionalDeviceGuard guard(k_.device());
  Engine engine(k_);
  moba::attend_cached(engine.context(), engine.backend(), core(), parts, options, view_of(queries),
                      {view_of(out), view_of(lse)}, reads);
  return {out, lse};
}

void PagedKvCache::fork(std::int64_t source, std::int64_t target, std::int64_t length) {
  const c10::OptionalDeviceGuard guard(k_.device());
  Engine engine(k_);
  moba::PagedKvCache cache = core();
  moba::fork(engine.context(), engine.backend(), cache, source, target, length);
}

void PagedKvCache::truncate(std::int64_t sequence, std::int64_t length) {
  const c10::OptionalDeviceGuard guard(k_.device());
  Engine engine(k_);
  moba::PagedKvCache cache = core();
  moba::truncate(engine.context(), engine.backend(), cache, sequence, length);
}

std::int64_t PagedKvCache::length(std::int64_t sequence) const {
  require(sequence >= 0 && sequence < sequences(), "sequence", std::to_string(sequence),
          "between 0 and " + std::to_string(sequences() - 1), "The cache was made for that many.");
  return core().length(sequence);
}

}  // namespace moba::torch_ops
