// The buffers of caches, and the numbers that belong to them.
#include <limits>

#include "checks.h"

namespace moba {
namespace {

void check_cached_representatives(const Backend& backend, const TensorView& view, DType keys,
                                  std::initializer_list<std::int64_t> shape, const char* axes) {
  check_representatives(backend, "cache.representatives", view, keys, shape, axes);
  check_output(backend, "cache.representatives", view, view.dtype, shape, axes);
}

}  // namespace

void check_kv_cache(const Backend& backend, const KvCache& cache) {
  check_rank("cache.k", cache.k, 3, "[capacity, HK, D]");
  check_float(backend, "cache.k", cache.k.dtype);
  const std::int64_t capacity = cache.k.shape[0], kv_heads = cache.k.shape[1], dim = cache.k.shape[2];
  check_output(backend, "cache.k", cache.k, cache.k.dtype, {-1, -1, -1}, "[capacity, HK, D]");
  check_output(backend, "cache.v", cache.v, cache.k.dtype, {capacity, kv_heads, -1}, "[capacity, HK, Dv]");
  require(cache.block_size >= 0, "cache.block_size", std::to_string(cache.block_size), "at least 0",
          "0 is for a layer without block choice.");
  if (cache.block_size > 0) {
    check_cached_representatives(backend, cache.representatives, cache.k.dtype,
                                 {block_rows(capacity, 1, cache.block_size), kv_heads, dim},
                                 "[block_rows(capacity, 1, B), HK, D]");
    check_output(backend, "cache.running_sum", cache.running_sum, accumulator_dtype(cache.k.dtype), {kv_heads, dim},
                 "[HK, D]");
  }
  require(cache.length >= 0 && cache.length <= capacity, "cache.length", std::to_string(cache.length),
          "between 0 and the capacity, " + std::to_string(capacity), "Only append and truncate should change it.");
}

void check_paged_kv_cache(const Backend& backend, const PagedKvCache& cache) {
  const bool on_host = backend.device() == DeviceKind::kCpu;
  if (!on_host && backend.device_pages() == nullptr) {
    throw Error(ErrorCode::kUnsupported, std::string("backend is '") + backend.name() +
                                             "'; it does not write to pages. Use one whose device_pages() is there, or "
                                             "cpu_backend().");
  }
  check_page_size(cache.page_size);
  require(cache.block_size >= 0 && cache.block_size % cache.page_size == 0, "cache.block_size",
          std::to_string(cache.block_size), "a multiple of the page size, " + std::to_string(cache.page_size),
          "Blocks are whole pages; 0 is for a layer without block choice.");
  require(cache.pool != nullptr, "cache.pool", "null", "the PagePool of these pages", "Lend it.");
  const std::int64_t pages = cache.pool->pages();
  require(pages <= std::numeric_limits<std::int64_t>::max() / cache.page_size, "cache.page_size",
          std::to_string(cache.page_size), "of fewer than 2^63 tokens in all", "Make the pages smaller.");
  check_rank("cache.k", cache.k, 3, "[pages * page_size, HK, D]");
  check_float(backend, "cache.k", cache.k.dtype);
  check_output(backend, "cache.k", cache.k, cache.k.dtype, {pages * cache.page_size, -1, -1},
               "[pages * page_size, HK, D]");
  const std::int64_t kv_heads = cache.k.shape[1], dim = cache.k.shape[2];
  check_output(backend, "cache.v", cache.v, cache.k.dtype, {pages * cache.page_size, kv_heads, -1},
               "[pages * page_size, HK, Dv]");
  const Backend& host = reference_backend();
  check_output(host, "cache.page_tables", cache.page_tables, DType::kInt32, {-1, -1},
               "[sequences, most pages of a sequence]");
  require(cache.page_tables.shape[1] <= std::numeric_limits<std::int64_t>::max() / cache.page_size,
          "the width of cache.page_tables", std::to_string(cache.page_tables.shape[1]), "of fewer than 2^63 tokens",
          "No memory holds such a sequence.");
  check_output(host, "cache.lengths", cache.lengths, DType::kInt64, {cache.sequences()}, "[sequences]");
  if (!on_host) {
    check_output(backend, "cache.device_tables", cache.device_tables, DType::kInt32,
                 {cache.sequences(), cache.page_tables.shape[1]}, "[sequences, most pages of a sequence]");
    check_output(backend, "cache.device_lengths", cache.device_lengths, DType::kInt64, {cache.sequences()},
                 "[sequences]");
  }
  if (cache.block_size == 0) return;
  check_cached_representatives(backend, cache.representatives, cache.k.dtype, {pages, kv_heads, dim}, "[pages, HK, D]");
  check_output(backend, "cache.running_sums", cache.running_sums, accumulator_dtype(cache.k.dtype),
               {cache.sequences(), kv_heads, dim}, "[sequences, HK, D]");
}

}  // namespace moba
