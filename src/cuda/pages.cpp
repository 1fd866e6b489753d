#include "cuda/pages.h"

#include <algorithm>
#include <limits>
#include <string>

#include "cuda/cuda_check.h"
#include "cuda/tensor_map.h"
#include "cuda/verbs.h"
#include "moba/error.h"
#include "moba/paged_kv_cache.h"

namespace moba::cuda {
namespace {

void require_native(bool holds, const std::string& what, const char* rule) {
  if (holds) return;
  throw Error(ErrorCode::kUnsupported, "a cache in pages on CUDA: " + what + "; the Hopper kernels take " + rule +
                                           ". Keep such a cache on the CPU.");
}

void refuse_capture(cudaStream_t stream, const char* what) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  if (status == cudaStreamCaptureStatusNone) return;
  throw Error(ErrorCode::kUnsupported,
              std::string("the stream is being captured in a graph, which would repeat ") + what +
                  " with every replay. Call grow(), fork() and truncate() outside of the graph, before each replay; "
                  "capture write() and attend_cached().");
}

PagedTensors tensors_of(const PagedKvCache& cache) {
  const std::int64_t dim = cache.k.shape[2];
  require_native(dim == cache.v.shape[2] && (dim == 64 || dim == 128),
                 "k and v have head dims " + std::to_string(dim) + " and " + std::to_string(cache.v.shape[2]),
                 "64 and 128, the same for both");
  require_native(is_aligned(cache.k) && is_aligned(cache.v),
                 "cache.k or cache.v has an address or a stride that is no multiple of 16 bytes", "aligned rows");
  PagedTensors tensors;
  tensors.k = cache.k.data, tensors.v = cache.v.data;
  tensors.k_row_stride = cache.k.stride[0], tensors.k_head_stride = cache.k.stride[1];
  tensors.v_row_stride = cache.v.stride[0], tensors.v_head_stride = cache.v.stride[1];
  tensors.kv_heads = static_cast<std::int32_t>(cache.k.shape[1]);
  tensors.head_dim = static_cast<std::int32_t>(dim);
  if (cache.block_size == 0) return tensors;
  require_native(cache.representatives.dtype == cache.k.dtype, "representatives are float32",
                 "those in the dtype of the keys");
  require_native(
      is_aligned(cache.representatives) && is_aligned(cache.running_sums),
      "cache.representatives or cache.running_sums has an address or a stride that is no multiple of 16 bytes",
      "aligned rows");
  require_native(cache.block_size < 1 << 30, "block_size is " + std::to_string(cache.block_size), "fewer than 2^30");
  tensors.representatives = cache.representatives.data;
  tensors.r_row_stride = cache.representatives.stride[0], tensors.r_head_stride = cache.representatives.stride[1];
  tensors.sums = cache.running_sums.as<float>();
  tensors.s_row_stride = cache.running_sums.stride[0], tensors.s_head_stride = cache.running_sums.stride[1];
  tensors.block_size = static_cast<std::int32_t>(cache.block_size);
  return tensors;
}

}  // namespace

void mirror(Context& context, const PagedKvCache& cache, std::span<const PageRun> runs) {
  const cudaStream_t stream = stream_of(context);
  refuse_capture(stream, "the lengths and page tables of now");
  TableEntries entries;
  entries.tables = cache.device_tables.as<std::int32_t>();
  entries.table_stride = cache.device_tables.stride[0];
  entries.lengths = cache.device_lengths.as<std::int64_t>();
  entries.length_stride = cache.device_lengths.stride[0];
  const auto add = [&](std::int64_t sequence, std::int64_t index, std::int64_t value) {
    entries.entry[entries.count++] = {static_cast<std::int32_t>(sequence), static_cast<std::int32_t>(index),
                                      static_cast<std::int32_t>(value)};
    if (entries.count < kMostEntries) return;
    launch_set_tables(stream, entries);
    entries.count = 0;
  };
  for (const PageRun& run : runs) {
    const std::int32_t* table = cache.page_tables.as<std::int32_t>() + run.sequence * cache.page_tables.stride[0];
    for (std::int64_t i = run.first; i < run.first + run.count; ++i) add(run.sequence, i, table[i]);
    add(run.sequence, -1, cache.length(run.sequence));
  }
  if (entries.count > 0) launch_set_tables(stream, entries);
}

void copy_pages(Context& context, const PagedKvCache& cache, std::span<const PageCopy> copies) {
  const cudaStream_t stream = stream_of(context);
  refuse_capture(stream, "this copy of a shared page");
  PageCopies problem;
  problem.tensors = tensors_of(cache);
  problem.page_size = static_cast<std::int32_t>(cache.page_size);
  for (const PageCopy& copy : copies) {
    problem.copy[problem.count++] = {copy.from, copy.to, static_cast<std::int32_t>(copy.tokens)};
    if (problem.count < kMostCopies) continue;
    launch_copy_pages(stream, cache.k.dtype, problem);
    problem.count = 0;
  }
  if (problem.count > 0) launch_copy_pages(stream, cache.k.dtype, problem);
}

void write(Context& context, const PagedKvCache& cache, std::span<const SequenceTokens> parts,
           const ConstTensorView& k_new, const ConstTensorView& v_new) {
  require_native(is_aligned(k_new) && is_aligned(v_new),
                 "k_new or v_new has an address or a stride that is no multiple of 16 bytes", "aligned rows");
  TokenWrites writes;
  writes.tensors = tensors_of(cache);
  writes.batch = paged_sequences(context, cache);
  writes.k = k_new.data, writes.v = v_new.data;
  writes.k_row_stride = k_new.stride[0], writes.k_head_stride = k_new.stride[1];
  writes.v_row_stride = v_new.stride[0], writes.v_head_stride = v_new.stride[1];
  std::int64_t first = 0, most = 0;
  const auto launch = [&] {
    if (writes.batch.count > 0) launch_write_tokens(stream_of(context), cache.k.dtype, writes, most);
    writes.batch.count = 0;
    most = 0;
  };
  for (const SequenceTokens& part : parts) {
    if (part.count == 0) continue;
    writes.batch.sequence[writes.batch.count] = static_cast<std::int32_t>(part.sequence);
    writes.part[writes.batch.count++] = {static_cast<std::int32_t>(first), static_cast<std::int32_t>(part.count)};
    most = std::max(most, part.count);
    first += part.count;
    if (writes.batch.count == kMostParts) launch();
  }
  launch();
}

void rebuild_sums(Context& context, const PagedKvCache& cache, std::int64_t sequence) {
  if (cache.block_size == 0) return;
  PagedSequences batch = paged_sequences(context, cache);
  batch.count = 1;
  batch.sequence[0] = static_cast<std::int32_t>(sequence);
  launch_rebuild_sums(stream_of(context), cache.k.dtype, tensors_of(cache), batch);
}

void gather(Context& context, const PagedKvCache& cache, std::int64_t sequence, std::int64_t rows,
            const GatheredSequence& to) {
  GatherProblem problem;
  problem.tensors = tensors_of(cache);
  problem.batch = paged_sequences(context, cache);
  problem.batch.count = 1;
  problem.batch.sequence[0] = static_cast<std::int32_t>(sequence);
  problem.k = to.k.data, problem.v = to.v.data;
  problem.representatives = to.representatives.data;
  problem.length = to.k.shape[0], problem.rows = rows;
  problem.cu_seqlens_q = to.cu_seqlens_q.as<std::int64_t>();
  problem.cu_seqlens_k = to.cu_seqlens_k.as<std::int64_t>();
  launch_gather(stream_of(context), cache.k.dtype, problem);
}

}  // namespace moba::cuda
