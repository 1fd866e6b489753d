// The pages of many sequences: taken, shared, copied on write, given back; and attention over them.
#include "moba/paged_kv_cache.h"

#include <algorithm>
#include <string>

#include "cached_blocks.h"
#include "checks.h"
#include "device_attend.h"
#include "moba/device_pages.h"
#include "moba/pipeline.h"
#include "scratch.h"

namespace moba {
namespace {

/// Where the host keeps its own lists: scratch of the caller, or of the C++ allocator where the caller's is a device's.
class HostContext {
 public:
  HostContext(Context& context, const Backend& backend)
      : context_(backend.device() == DeviceKind::kCpu ? &context : &own_) {}
  Context& operator*() const { return *context_; }

 private:
  SerialContext own_;
  Context* context_;
};

/// How many pages `length` tokens take.
std::int64_t pages_for(const PagedKvCache& cache, std::int64_t length) {
  return length / cache.page_size + (length % cache.page_size > 0);
}

/// Null for tables without room for a page, which may lie nowhere.
std::int32_t* table_of(const PagedKvCache& cache, std::int64_t sequence) {
  if (cache.page_tables.shape[1] == 0) return nullptr;
  return cache.page_tables.as<std::int32_t>() + sequence * cache.page_tables.stride[0];
}

std::int64_t row_of(const PagedKvCache& cache, std::int64_t sequence, std::int64_t position) {
  return table_of(cache, sequence)[position / cache.page_size] * cache.page_size + position % cache.page_size;
}

void set_length(const PagedKvCache& cache, std::int64_t sequence, std::int64_t length) {
  cache.lengths.as<std::int64_t>()[sequence * cache.lengths.stride[0]] = length;
}

void check_sequence(const PagedKvCache& cache, const std::string& argument, std::int64_t sequence) {
  require(sequence >= 0 && sequence < cache.sequences(), argument, std::to_string(sequence),
          "between 0 and " + std::to_string(cache.sequences() - 1), "The cache has a row of page_tables for each.");
  const std::int64_t length = cache.length(sequence);
  require(length >= 0 && length <= cache.capacity(), "cache.lengths[" + std::to_string(sequence) + "]",
          std::to_string(length), "between 0 and the capacity, " + std::to_string(cache.capacity()),
          "Set them to 0 at first; only append, fork and truncate should change them.");
}

/// The parts name existing sequences, each once, with counts that sum up to `rows` of the argument.
void check_parts(Context& context, const PagedKvCache& cache, std::span<const SequenceTokens> parts,
                 const std::string& argument, std::int64_t rows) {
  const Scratch<bool> named(context, cache.sequences(), "which sequences are named");
  std::fill(named.begin(), named.end(), false);
  std::int64_t left = rows;
  for (const SequenceTokens& part : parts) {
    check_sequence(cache, "sequence", part.sequence);
    require(!named[part.sequence], "sequence", std::to_string(part.sequence) + " twice", "named once in a call",
            "Put its tokens into one part.");
    named[part.sequence] = true;
    require(part.count >= 0 && part.count <= left, "the count of sequence " + std::to_string(part.sequence),
            std::to_string(part.count), "between 0 and the rows of " + argument + " left, " + std::to_string(left),
            "The counts of all parts sum up to its rows.");
    left -= part.count;
  }
  require(left == 0, "the number of rows of " + argument, std::to_string(rows),
          "the sum of the counts, " + std::to_string(rows - left), "Pass one row for each token.");
}

/// The running sums of one sequence anew, from the keys of its open block.
void rebuild_sums(Context& context, const PagedKvCache& cache, std::int64_t sequence, std::int64_t length) {
  if (cache.block_size == 0) return;
  dispatch("cache.k", cache.k.dtype, FloatTypes{}, [&]<class T>() {
    context.parallel_for(cache.k.shape[1], 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t head = begin; head < end; ++head) {
        extend_blocks<T>(
            cache.k, cache.representatives, cached_row<Accumulator<T>>(cache.running_sums, sequence, head),
            cache.block_size, head, length / cache.block_size * cache.block_size, length,
            [&](std::int64_t position) { return row_of(cache, sequence, position); },
            [](std::int64_t block) { return block; });  // no block closes in an open one
      }
    });
  });
}

/// What `append` does to one sequence.
struct Growth {
  std::int64_t sequence, length, count;  // length: before
  std::int64_t first_new;                // row of k_new
  std::int64_t copied_page;              // the shared page whose tokens are copied, or -1
};

/// Takes the pages for all parts and enters them into the tables; or throws, having changed nothing. A page that is
/// shared and not full is replaced: its holder's place is given up before it is known whether there are enough pages,
/// and claimed again where there are not, since the last of several holders in one call needs no copy.
void take_pages(Context& context, PagedKvCache& cache, const Scratch<Growth>& growth) {
  PagePool& pool = *cache.pool;
  std::int64_t needed = 0, given_up = 0;
  const Scratch<std::int32_t> shared(context, growth.size(), "shared pages");
  const auto claim_again = [&] { pool.share({shared.data(), static_cast<std::size_t>(given_up)}); };
  std::int64_t most = 0;
  for (const Growth& g : growth) most += pages_for(cache, g.length + g.count) - pages_for(cache, g.length) + 1;
  const Scratch<std::int32_t> fresh(context, most, "new pages");
  try {
    for (Growth& g : growth) {
      needed += pages_for(cache, g.length + g.count) - pages_for(cache, g.length);
      if (g.count == 0 || g.length % cache.page_size == 0) continue;
      const std::int32_t open = table_of(cache, g.sequence)[g.length / cache.page_size];
      if (pool.holders(open) < 2) continue;
      pool.release({&open, 1});
      shared[given_up++] = open;
      g.copied_page = open;
      ++needed;
    }
    pool.take({fresh.data(), static_cast<std::size_t>(needed)});
  } catch (...) {
    claim_again();
    throw;
  }
  const std::int32_t* next = fresh.data();
  for (const Growth& g : growth) {
    std::int32_t* table = table_of(cache, g.sequence);
    if (g.copied_page >= 0) table[g.length / cache.page_size] = *next++;
    for (std::int64_t page = pages_for(cache, g.length); page < pages_for(cache, g.length + g.count); ++page) {
      table[page] = *next++;
    }
  }
}

template <class T>
void copy_token(const ConstTensorView& from, std::int64_t from_row, const TensorView& to, std::int64_t to_row,
                std::int64_t head) {
  std::copy_n(from.as<T>() + from_row * from.stride[0] + head * from.stride[1], from.shape[2],
              cached_row<T>(to, to_row, head));
}

/// The tokens of one head in a page that was shared.
template <class T>
void copy_shared(const PagedKvCache& cache, const Growth& g, std::int64_t head) {
  for (std::int64_t t = g.length / cache.page_size * cache.page_size; t < g.length; ++t) {
    const std::int64_t from = g.copied_page * cache.page_size + t % cache.page_size;
    const std::int64_t to = row_of(cache, g.sequence, t);
    copy_token<T>(cache.k, from, cache.k, to, head);
    copy_token<T>(cache.v, from, cache.v, to, head);
  }
}

void check_new_tokens(const Backend& backend, const PagedKvCache& cache, const ConstTensorView& k_new,
                      const ConstTensorView& v_new) {
  const std::int64_t kv_heads = cache.k.shape[1];
  check_tensor(backend, "k_new", k_new, cache.k.dtype, {-1, kv_heads, cache.k.shape[2]}, "[sum of counts, HK, D]");
  check_tensor(backend, "v_new", v_new, cache.k.dtype, {k_new.shape[0], kv_heads, cache.v.shape[2]},
               "[sum of counts, HK, Dv]");
}

/// The new tokens of one head.
template <class T>
void write_new(const PagedKvCache& cache, const Growth& g, std::int64_t head, const ConstTensorView& k_new,
               const ConstTensorView& v_new) {
  for (std::int64_t i = 0; i < g.count; ++i) {
    const std::int64_t to = row_of(cache, g.sequence, g.length + i);
    copy_token<T>(k_new, g.first_new + i, cache.k, to, head);
    copy_token<T>(v_new, g.first_new + i, cache.v, to, head);
  }
  if (cache.block_size == 0) return;
  extend_blocks<T>(
      cache.k, cache.representatives, cached_row<Accumulator<T>>(cache.running_sums, g.sequence, head),
      cache.block_size, head, g.length, g.length + g.count,
      [&](std::int64_t position) { return row_of(cache, g.sequence, position); },
      [&](std::int64_t block) {
        return table_of(cache, g.sequence)[(block + 1) * (cache.block_size / cache.page_size) - 1];
      });
}

}  // namespace

namespace {

/// What `parts` do to their sequences, once it is known that all have room.
void plan_growth(const PagedKvCache& cache, std::span<const SequenceTokens> parts, const Scratch<Growth>& growth) {
  std::int64_t first_new = 0;
  for (std::int64_t i = 0; i < growth.size(); ++i) {
    const SequenceTokens& part = parts[static_cast<std::size_t>(i)];
    const std::int64_t length = cache.length(part.sequence);
    require(part.count <= cache.capacity() - length,
            "the number of new tokens of sequence " + std::to_string(part.sequence), std::to_string(part.count),
            "at most the room left in its page table, " + std::to_string(cache.capacity() - length),
            "Make page_tables wider, or truncate the sequence first.");
    growth[i] = {part.sequence, length, part.count, first_new, -1};
    first_new += part.count;
  }
}

std::int64_t tokens_of(std::span<const SequenceTokens> parts) {
  std::int64_t tokens = 0;
  for (const SequenceTokens& part : parts) tokens += std::max<std::int64_t>(part.count, 0);
  return tokens;
}

template <class Work>
void for_each_head(Context& context, const PagedKvCache& cache, const Scratch<Growth>& growth, Work&& work) {
  const std::int64_t kv_heads = cache.k.shape[1];
  context.parallel_for(growth.size() * kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) work(growth[task / kv_heads], task % kv_heads);
  });
}

/// The tokens of shared pages to where their sequences may write.
void copy_shared_pages(Context& context, const Backend& backend, const PagedKvCache& cache,
                       const Scratch<Growth>& growth) {
  if (std::none_of(growth.begin(), growth.end(), [](const Growth& g) { return g.copied_page >= 0; })) return;
  if (const DevicePages* device = backend.device_pages()) {
    const HostContext host(context, backend);
    const Scratch<PageCopy> copies(*host, growth.size(), "pages to copy");
    std::size_t count = 0;
    for (const Growth& g : growth) {
      if (g.copied_page < 0) continue;
      copies[static_cast<std::int64_t>(count++)] = {static_cast<std::int32_t>(g.copied_page),
                                                    table_of(cache, g.sequence)[g.length / cache.page_size],
                                                    g.length % cache.page_size};
    }
    return device->copy_pages(context, cache, {copies.data(), count});
  }
  dispatch("cache.k", cache.k.dtype, FloatTypes{}, [&]<class T>() {
    for_each_head(context, cache, growth, [&](const Growth& g, std::int64_t head) {
      if (g.copied_page >= 0) copy_shared<T>(cache, g, head);
    });
  });
}

/// The device's copies of the tables from the page on that each sequence's next token had, and of the lengths.
void mirror_growth(Context& context, const Backend& backend, const PagedKvCache& cache, const Scratch<Growth>& growth) {
  const DevicePages* device = backend.device_pages();
  if (device == nullptr) return;
  const HostContext host(context, backend);
  const Scratch<PageRun> runs(*host, growth.size(), "pages that are new");
  for (std::int64_t i = 0; i < growth.size(); ++i) {
    const Growth& g = growth[i];
    const std::int64_t first = g.copied_page >= 0 ? g.length / cache.page_size : pages_for(cache, g.length);
    runs[i] = {g.sequence, first, pages_for(cache, g.length + g.count) - first};
  }
  device->mirror(context, cache, {runs.data(), static_cast<std::size_t>(growth.size())});
}

/// What changes tables does not belong into a graph; said before anything is changed.
void refuse_capture(Context& context, const Backend& backend, const PagedKvCache& cache) {
  if (const DevicePages* device = backend.device_pages()) device->mirror(context, cache, {});
}

/// After a sequence was given another length and table: the device's copies of them, and its running sums.
void follow_sequence(Context& context, const Backend& backend, const PagedKvCache& cache, std::int64_t sequence) {
  const std::int64_t length = cache.length(sequence);
  const DevicePages* device = backend.device_pages();
  if (device == nullptr) return rebuild_sums(context, cache, sequence, length);
  const PageRun run{sequence, 0, pages_for(cache, length)};
  device->mirror(context, cache, {&run, 1});
  device->rebuild_sums(context, cache, sequence);
}

/// All of `grow` that comes after the checks.
void grow_sequences(Context& context, const Backend& backend, PagedKvCache& cache, const Scratch<Growth>& growth) {
  const HostContext host(context, backend);
  take_pages(*host, cache, growth);
  copy_shared_pages(context, backend, cache, growth);
  for (const Growth& g : growth) set_length(cache, g.sequence, g.length + g.count);
  mirror_growth(context, backend, cache, growth);
}

/// All of `write` that comes after the checks. Allocates nothing in host memory.
void write_tokens(Context& context, const Backend& backend, const PagedKvCache& cache,
                  std::span<const SequenceTokens> parts, const Scratch<Growth>& growth, const ConstTensorView& k_new,
                  const ConstTensorView& v_new) {
  if (const DevicePages* device = backend.device_pages()) return device->write(context, cache, parts, k_new, v_new);
  dispatch("cache.k", cache.k.dtype, FloatTypes{}, [&]<class T>() {
    for_each_head(context, cache, growth,
                  [&](const Growth& g, std::int64_t head) { write_new<T>(cache, g, head, k_new, v_new); });
  });
}

}  // namespace

void grow(Context& context, const Backend& backend, PagedKvCache& cache, std::span<const SequenceTokens> parts) {
  check_paged_kv_cache(backend, cache);
  const HostContext host(context, backend);
  check_parts(*host, cache, parts, "the tokens", tokens_of(parts));
  const Scratch<Growth> growth(*host, static_cast<std::int64_t>(parts.size()), "sequences that grow");
  plan_growth(cache, parts, growth);
  refuse_capture(context, backend, cache);
  grow_sequences(context, backend, cache, growth);
}

void write(Context& context, const Backend& backend, PagedKvCache& cache, std::span<const SequenceTokens> parts,
           ConstTensorView k_new, ConstTensorView v_new) {
  check_paged_kv_cache(backend, cache);
  check_new_tokens(backend, cache, k_new, v_new);
  const HostContext host(context, backend);
  check_parts(*host, cache, parts, "k_new", k_new.shape[0]);
  const Scratch<Growth> growth(*host, static_cast<std::int64_t>(parts.size()), "sequences that grew");
  std::int64_t first_new = 0;
  for (std::int64_t i = 0; i < growth.size(); ++i) {
    const SequenceTokens& part = parts[static_cast<std::size_t>(i)];
    const std::int64_t before = cache.length(part.sequence) - part.count;
    require(before >= 0, "the number of tokens of sequence " + std::to_string(part.sequence),
            std::to_string(part.count), "at most its length, " + std::to_string(cache.length(part.sequence)),
            "Call grow() first.");
    growth[i] = {part.sequence, before, part.count, first_new, -1};
    first_new += part.count;
  }
  write_tokens(context, backend, cache, parts, growth, k_new, v_new);
}

void append(Context& context, const Backend& backend, PagedKvCache& cache, std::span<const SequenceTokens> parts,
            ConstTensorView k_new, ConstTensorView v_new) {
  check_paged_kv_cache(backend, cache);
  check_new_tokens(backend, cache, k_new, v_new);
  const HostContext host(context, backend);
  check_parts(*host, cache, parts, "k_new", k_new.shape[0]);
  const Scratch<Growth> growth(*host, static_cast<std::int64_t>(parts.size()), "sequences that grow");
  plan_growth(cache, parts, growth);
  refuse_capture(context, backend, cache);
  grow_sequences(context, backend, cache, growth);
  write_tokens(context, backend, cache, parts, growth, k_new, v_new);
}

void fork(Context& context, const Backend& backend, PagedKvCache& cache, std::int64_t source, std::int64_t target,
          std::int64_t length) {
  check_paged_kv_cache(backend, cache);
  check_sequence(cache, "source", source);
  check_sequence(cache, "target", target);
  require(cache.length(target) == 0, "the length of target, sequence " + std::to_string(target) + ",",
          std::to_string(cache.length(target)), "0", "Truncate it to 0 first, or name a free sequence.");
  require(length >= 0 && length <= cache.length(source), "length", std::to_string(length),
          "between 0 and that of the source, " + std::to_string(cache.length(source)),
          "Only tokens that are there can be shared.");
  if (source == target) return;  // both are empty
  refuse_capture(context, backend, cache);
  const std::int64_t pages = pages_for(cache, length);
  const std::int32_t* from = table_of(cache, source);
  cache.pool->share({from, static_cast<std::size_t>(pages)});
  std::copy_n(from, pages, table_of(cache, target));
  set_length(cache, target, length);
  follow_sequence(context, backend, cache, target);
}

void truncate(Context& context, const Backend& backend, PagedKvCache& cache, std::int64_t sequence,
              std::int64_t length) {
  check_paged_kv_cache(backend, cache);
  check_sequence(cache, "sequence", sequence);
  const std::int64_t old = cache.length(sequence);
  require(length >= 0 && length <= old, "length", std::to_string(length),
          "between 0 and that of the sequence, " + std::to_string(old), "A sequence can only be cut shorter.");
  refuse_capture(context, backend, cache);
  const std::int64_t kept = pages_for(cache, length);
  cache.pool->release({table_of(cache, sequence) + kept, static_cast<std::size_t>(pages_for(cache, old) - kept)});
  set_length(cache, sequence, length);
  follow_sequence(context, backend, cache, sequence);
}

void attend_cached(Context& context, const Backend& backend, const PagedKvCache& cache,
                   std::span<const SequenceTokens> parts, const AttentionOptions& options, ConstTensorView q,
                   Partial result, ReadCount* reads) {
  check_paged_kv_cache(backend, cache);
  check_queries_and_keys(backend, q, cache.k);
  const std::int64_t rows = q.shape[0], count = static_cast<std::int64_t>(parts.size());
  const HostContext host(context, backend);
  check_parts(*host, cache, parts, "q", rows);
  for (const SequenceTokens& part : parts) {
    const std::int64_t length = cache.length(part.sequence);
    require(part.count <= length, "the number of rows of sequence " + std::to_string(part.sequence),
            std::to_string(part.count), "at most its length, " + std::to_string(length),
            "Append the keys of these rows first.");
  }
  if (backend.device_pages() != nullptr) {
    require(reads == nullptr, "reads", "given", "absent for a cache in device memory",
            "What was chosen is not read back there; count on a cache in host memory.");
    return attend_device_pages(context, backend, cache, parts, options, q, result);
  }

  const Scratch<std::int64_t> offsets(context, 2 * (count + 1), "offsets of the sequences");
  std::int64_t* const offsets_q = offsets.data();
  std::int64_t* const offsets_k = offsets.data() + count + 1;
  PackedBatch batch;
  batch.max_seqlen_k = 1;  // an upper bound: the pool has tokens even where these sequences have none
  offsets_q[0] = offsets_k[0] = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const SequenceTokens& part = parts[static_cast<std::size_t>(i)];
    const std::int64_t length = cache.length(part.sequence);
    offsets_q[i + 1] = offsets_q[i] + part.count;
    offsets_k[i + 1] = offsets_k[i] + length;
    batch.max_seqlen_q = std::max(batch.max_seqlen_q, part.count);
    batch.max_seqlen_k = std::max(batch.max_seqlen_k, length);
  }
  batch.cu_seqlens_q = ConstTensorView(offsets_q, DType::kInt64, {count + 1});
  batch.cu_seqlens_k = ConstTensorView(offsets_k, DType::kInt64, {count + 1});

  const std::int64_t width = pages_for(cache, batch.max_seqlen_k);
  const Scratch<std::int32_t> tables(context, count * width, "page tables of the call");
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t sequence = parts[static_cast<std::size_t>(i)].sequence;
    const std::int64_t pages = pages_for(cache, cache.length(sequence));
    std::copy_n(table_of(cache, sequence), pages, tables.data() + i * width);
    std::fill_n(tables.data() + i * width + pages, width - pages, -1);
  }
  const PageTable table{ConstTensorView(tables.data(), DType::kInt32, {count, width}), cache.page_size};

  Selection selection = plan_selection(options, rows, q.shape[1], cache.k.shape[1], batch.max_seqlen_k);
  const bool has_list = selection.kind == SelectionKind::kList;
  require(!has_list || selection.block_size == cache.block_size, "block_size", std::to_string(options.block_size),
          "that of the cache, " + std::to_string(cache.block_size),
          "Make the cache for this block size; a cache of block size 0 serves kinds full and window.");
  check_countable("the list of chosen blocks (rows x H x budget)", selection.blocks);
  const Scratch<std::int32_t> list(context, has_list ? selection.blocks.numel() : 0, "the list of chosen blocks");
  selection.blocks.data = list.data();
  if (has_list) {
    select(context, backend, options, q, cache.k, cache.representatives, batch, selection, table);
  }
  const AttendArgs args{q, cache.k, cache.v, batch, selection, options.softmax_scale, result, table};
  attend(context, backend, args);
  if (reads != nullptr) count_reads(context, args, *reads);
}

}  // namespace moba
