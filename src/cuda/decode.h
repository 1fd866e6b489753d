// Launchers of a decode step over keys and values in pages: one query row for each of several sequences. Raw pointers,
// strides in elements, everything on one stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "moba/tensor.h"

namespace moba::cuda {

/// Sequences of one launch: as many numbers as a kernel's parameters hold beside the rest. Longer steps are cut.
inline constexpr std::int64_t kMostSequences = 512;

/// The sequences of a step: row r of q is of the sequence `sequence[r]` of the cache, whose length and page table are
/// read in device memory when the kernel runs, so that a captured step follows a cache that grows.
struct PagedSequences {
  const std::int32_t* tables = nullptr;  // [sequences, width]
  std::int64_t table_stride = 0;
  const std::int64_t* lengths = nullptr;  // [sequences]
  std::int64_t length_stride = 1;
  std::int32_t capacity = 0;  // tokens that a table has room for; greater lengths are clamped to it
  std::int32_t page_size = 1;
  std::int32_t page_shift = -1;  // log2(page_size), or -1
  std::int32_t pages = 0;        // of the pool; page numbers outside of it are clamped
  std::int32_t* error_word = nullptr;
  std::int32_t count = 0;
  std::int32_t sequence[kMostSequences];
};

/// Query heads of one tile, the rows of the tensor cores' products: heads of one key/value head.
inline constexpr int kHeadTile = 16;
/// CTAs that work on one unit together and exchange through each other's shared memory.
inline constexpr int kMostCluster = 8;

/// A decode step: the choice of blocks, then attention of each row to its own block and the blocks of its lists; or
/// attention to every key.
struct DecodeProblem {
  PagedSequences batch;
  std::int32_t heads = 0, kv_heads = 0;
  const void* q = nullptr;  // [rows, H, D]
  std::int64_t q_row_stride = 0, q_head_stride = 0;
  const void* k = nullptr;  // [pages * page_size, HK, D]
  std::int64_t k_row_stride = 0, k_head_stride = 0;
  const void* v = nullptr;  // likewise
  std::int64_t v_row_stride = 0, v_head_stride = 0;
  void* out = nullptr;  // [rows, H, D]
  std::int64_t out_row_stride = 0, out_head_stride = 0;
  float* lse = nullptr;  // [H, rows]
  std::int64_t lse_head_stride = 0;
  float softmax_scale = 0.0f;

  std::int32_t block_size = 0;            // 0: every key; what follows is not used then
  const void* representatives = nullptr;  // [pages, HK, D]
  std::int64_t r_row_stride = 0, r_head_stride = 0;
  std::int32_t* blocks = nullptr;  // [rows, lists, budget]: written by the choice
  std::int64_t row_stride = 0, list_stride = 0;
  std::int32_t lists = 1;  // H, HK or 1
  std::int32_t budget = 0, sinks = 0;
  bool force_previous = false;

  std::int32_t cluster = 1;  // 1, 2, 4 or 8
  std::int32_t warps = 4;    // of a CTA that attends: 4 or 8
};

/// Whether the heads that attend together choose together too, so that one launch does both.
bool chooses_by_unit(const DecodeProblem& problem);

/// The choice alone.
void launch_decode_choose(cudaStream_t stream, DType dtype, std::int64_t head_dim, const DecodeProblem& problem);

/// Attention, after the choice where `chooses`, by the lists as they are where not.
void launch_decode_attend(cudaStream_t stream, DType dtype, std::int64_t head_dim, const DecodeProblem& problem,
                          bool chooses);

/// How many CTAs of a cluster suit so many units of work: enough to fill the device, as far as 8 reach.
int cluster_for(std::int64_t units, int multiprocessors, int resident);

}  // namespace moba::cuda
