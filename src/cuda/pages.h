// The cache in pages on the device: what DevicePages asks for, and the launchers behind it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "cuda/decode.h"
#include "moba/device_pages.h"

namespace moba::cuda {

/// As DevicePages says. Errors: kUnsupported names what the Hopper kernels do not take, and the way out.
void mirror(Context& context, const PagedKvCache& cache, std::span<const PageRun> runs);
void copy_pages(Context& context, const PagedKvCache& cache, std::span<const PageCopy> copies);
void write(Context& context, const PagedKvCache& cache, std::span<const SequenceTokens> parts,
           const ConstTensorView& k_new, const ConstTensorView& v_new);
void rebuild_sums(Context& context, const PagedKvCache& cache, std::int64_t sequence);
void decode(Context& context, const DecodeArgs& args);
void gather(Context& context, const PagedKvCache& cache, std::int64_t sequence, std::int64_t rows,
            const GatheredSequence& to);

/// The tables and lengths of a cache, without sequences.
PagedSequences paged_sequences(const Context& context, const PagedKvCache& cache);

// What follows travels by value, as a kernel's parameters, of which there are 4 KB: nothing needs memory that both
// sides see, and no call waits.

inline constexpr int kMostEntries = 240;
/// Entries of page tables; index -1 is the length of the sequence, in `value`.
struct TableEntries {
  std::int32_t* tables = nullptr;
  std::int64_t table_stride = 0;
  std::int64_t* lengths = nullptr;
  std::int64_t length_stride = 1;
  std::int32_t count = 0;
  struct {
    std::int32_t sequence, index, value;
  } entry[kMostEntries];
};
void launch_set_tables(cudaStream_t stream, const TableEntries& entries);

/// A cache's tensors; strides in elements.
struct PagedTensors {
  void* k = nullptr;  // [pages * page_size, HK, D]
  std::int64_t k_row_stride = 0, k_head_stride = 0;
  void* v = nullptr;  // likewise
  std::int64_t v_row_stride = 0, v_head_stride = 0;
  void* representatives = nullptr;  // [pages, HK, D]
  std::int64_t r_row_stride = 0, r_head_stride = 0;
  float* sums = nullptr;  // [sequences, HK, D]
  std::int64_t s_row_stride = 0, s_head_stride = 0;
  std::int32_t kv_heads = 0, head_dim = 0;  // Dv == D
  std::int32_t block_size = 0;              // 0: neither representatives nor sums
};

inline constexpr int kMostCopies = 240;
struct PageCopies {
  PagedTensors tensors;
  std::int32_t page_size = 1, count = 0;
  struct {
    std::int32_t from, to, tokens;
  } copy[kMostCopies];
};
void launch_copy_pages(cudaStream_t stream, DType dtype, const PageCopies& copies);

inline constexpr int kMostParts = 160;
/// Row first + i of k and v goes to position length - count + i of its sequence.
struct TokenWrites {
  PagedTensors tensors;
  PagedSequences batch;
  const void* k = nullptr;  // [tokens, HK, D]
  std::int64_t k_row_stride = 0, k_head_stride = 0;
  const void* v = nullptr;  // likewise
  std::int64_t v_row_stride = 0, v_head_stride = 0;
  struct {
    std::int32_t first, count;
  } part[kMostParts];
};
/// `most` is the greatest count. One launch where it is 1; else two: the first reads the sums of the blocks that were
/// open and closes blocks, the second leaves the sums of those that are open then.
void launch_write_tokens(cudaStream_t stream, DType dtype, const TokenWrites& writes, std::int64_t most);

/// The sums of the open blocks of the sequences, from their keys.
void launch_rebuild_sums(cudaStream_t stream, DType dtype, const PagedTensors& tensors, const PagedSequences& batch);

/// One sequence in one piece.
struct GatherProblem {
  PagedTensors tensors;
  PagedSequences batch;             // of one sequence
  void* k = nullptr;                // [length, HK, D], contiguous
  void* v = nullptr;                // likewise
  void* representatives = nullptr;  // [closed blocks, HK, D], contiguous; or null
  std::int64_t length = 0, rows = 0;
  std::int64_t* cu_seqlens_q = nullptr;  // [2]
  std::int64_t* cu_seqlens_k = nullptr;
};
void launch_gather(cudaStream_t stream, DType dtype, const GatherProblem& problem);

}  // namespace moba::cuda
