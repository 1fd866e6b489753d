// Keys, values and block representatives of one sequence for decoding.
#include "moba/kv_cache.h"

#include <algorithm>
#include <string>

#include "cached_blocks.h"
#include "checks.h"
#include "moba/pipeline.h"
#include "scratch.h"

namespace moba {
namespace {

void check_host(const Backend& backend) {
  if (backend.device() == DeviceKind::kCpu) return;
  throw Error(ErrorCode::kUnsupported, std::string("backend is '") + backend.name() +
                                           "'; this cache is written by the host. Use moba::torch_ops::KvCache, which "
                                           "keeps its tensors on CUDA devices.");
}

template <class T>
void copy_head(const ConstTensorView& source, const TensorView& target, std::int64_t first, std::int64_t head) {
  for (std::int64_t t = 0; t < source.shape[0]; ++t) {
    const T* from = source.as<T>() + t * source.stride[0] + head * source.stride[1];
    std::copy_n(from, source.shape[2], cached_row<T>(target, first + t, head));
  }
}

/// Adds the keys at positions [begin, end) of the cache to the running sum of one head, closing blocks as they fill.
template <class T>
void extend(const KvCache& cache, std::int64_t head, std::int64_t begin, std::int64_t end) {
  const auto same = [](std::int64_t row) { return row; };
  extend_blocks<T>(cache.k, cache.representatives, cached_row<Accumulator<T>>(cache.running_sum, head, 0),
                   cache.block_size, head, begin, end, same, same);
}

/// The first `length` tokens.
ConstTensorView prefix(TensorView tensor, std::int64_t length) {
  tensor.shape[0] = length;
  return tensor;
}

}  // namespace

void append(Context& context, const Backend& backend, KvCache& cache, ConstTensorView k_new, ConstTensorView v_new) {
  check_host(backend);
  check_kv_cache(backend, cache);
  const std::int64_t kv_heads = cache.k.shape[1];
  check_tensor(backend, "k_new", k_new, cache.k.dtype, {-1, kv_heads, cache.k.shape[2]}, "[n, HK, D]");
  const std::int64_t count = k_new.shape[0];
  check_tensor(backend, "v_new", v_new, cache.k.dtype, {count, kv_heads, cache.v.shape[2]}, "[n, HK, Dv]");
  require(count <= cache.capacity() - cache.length, "the number of new tokens", std::to_string(count),
          "at most the room left in the cache, " + std::to_string(cache.capacity() - cache.length),
          "Make the cache with a larger capacity, or truncate it first.");

  dispatch("cache.k", cache.k.dtype, FloatTypes{}, [&]<class T>() {
    context.parallel_for(kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t head = begin; head < end; ++head) {
        copy_head<T>(k_new, cache.k, cache.length, head);
        copy_head<T>(v_new, cache.v, cache.length, head);
        if (cache.block_size > 0) extend<T>(cache, head, cache.length, cache.length + count);
      }
    });
  });
  cache.length += count;
}

void attend_cached(Context& context, const Backend& backend, const KvCache& cache, const AttentionOptions& options,
                   ConstTensorView q, Partial result, ReadCount* reads) {
  check_host(backend);
  check_kv_cache(backend, cache);
  const ConstTensorView k = prefix(cache.k, cache.length), v = prefix(cache.v, cache.length);
  check_queries_and_keys(backend, q, k);
  const std::int64_t rows = q.shape[0];
  require(rows <= cache.length, "the number of rows of q", std::to_string(rows),
          "at most cache.length, " + std::to_string(cache.length), "Append the keys of these rows first.");

  const std::int64_t offsets_q[2] = {0, rows}, offsets_k[2] = {0, cache.length};
  PackedBatch batch;
  batch.cu_seqlens_q = ConstTensorView(offsets_q, DType::kInt64, {2});
  batch.cu_seqlens_k = ConstTensorView(offsets_k, DType::kInt64, {2});
  batch.max_seqlen_q = rows;
  batch.max_seqlen_k = cache.length;

  Selection selection = plan_selection(options, rows, q.shape[1], k.shape[1], cache.length);
  const bool has_list = selection.kind == SelectionKind::kList;
  require(!has_list || selection.block_size == cache.block_size, "block_size", std::to_string(options.block_size),
          "that of the cache, " + std::to_string(cache.block_size),
          "Make the cache for this block size; a cache of block size 0 serves kinds full and window.");
  const DType wanted = representative_dtype(options, k.dtype);
  require(!has_list || cache.representatives.dtype == wanted, "representative_dtype",
          name_of(options.representative_dtype),
          std::string("what the cache holds: its representatives are ") + name_of(cache.representatives.dtype),
          "Make the cache for this option.");
  check_countable("the list of chosen blocks (rows x H x budget)", selection.blocks);
  Scratch<std::int32_t> list(context, has_list ? selection.blocks.numel() : 0, "the list of chosen blocks");
  selection.blocks.data = list.data();

  const double scale = options.softmax_scale;
  if (has_list) {
    // Row t may choose among the blocks before its own, i < t / B. A block that has just been closed by token t is
    // still t's own; `select` knows this from positions, not from how many representatives there are.
    const ConstTensorView representatives =
        prefix(cache.representatives, block_rows(cache.length, 1, cache.block_size));
    select(context, backend, options, q, k, representatives, batch, selection);
  }
  const AttendArgs args{q, k, v, batch, selection, scale, result};
  attend(context, backend, args);
  if (reads != nullptr) count_reads(context, args, *reads);
}

void truncate(Context& context, const Backend& backend, KvCache& cache, std::int64_t length) {
  check_host(backend);
  check_kv_cache(backend, cache);
  require(length >= 0 && length <= cache.length, "length", std::to_string(length),
          "between 0 and cache.length, " + std::to_string(cache.length), "A cache can only be cut shorter.");
  if (cache.block_size > 0) {
    const std::int64_t open_begin = length / cache.block_size * cache.block_size;
    dispatch("cache.k", cache.k.dtype, FloatTypes{}, [&]<class T>() {
      context.parallel_for(cache.k.shape[1], 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t head = begin; head < end; ++head) extend<T>(cache, head, open_begin, length);
      });
    });
  }
  cache.length = length;
}

}  // namespace moba
