// The cache in pages: its tables and lengths as the host knows them, copies of shared pages, new tokens with what they
// add to running sums and representatives, and a sequence copied together.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/cuda_check.h"
#include "cuda/device/element.cuh"
#include "cuda/instances.h"
#include "cuda/pages.h"
#include "cuda/sm90/paged_rows.cuh"

namespace moba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPiece = 8;  // elements of 16 bytes

__global__ void set_tables_kernel(const __grid_constant__ TableEntries entries) {
  const int i = threadIdx.x;
  if (i >= entries.count) return;
  const auto& entry = entries.entry[i];
  if (entry.index < 0) {
    entries.lengths[entry.sequence * entries.length_stride] = entry.value;
  } else {
    entries.tables[entry.sequence * entries.table_stride + entry.index] = entry.value;
  }
}

/// 16 bytes of a row, as a thread works on them: which head and which of its columns.
struct Piece {
  std::int32_t head, column;
  __device__ __forceinline__ Piece(int index, int head_dim)
      : head(index / (head_dim / kPiece)), column(index % (head_dim / kPiece) * kPiece) {}
};

__device__ __forceinline__ int pieces_of(const PagedTensors& tensors) {
  return tensors.kv_heads * (tensors.head_dim / kPiece);
}

template <class T>
__device__ __forceinline__ void copy_piece(const void* from, std::int64_t from_place, void* to, std::int64_t to_place) {
  *reinterpret_cast<uint4*>(static_cast<T*>(to) + to_place) =
      *reinterpret_cast<const uint4*>(static_cast<const T*>(from) + from_place);
}

/// Block y copies a page's tokens x, x + gridDim.x, …
template <class T>
__global__ void copy_pages_kernel(const __grid_constant__ PageCopies copies) {
  const PagedTensors& tensors = copies.tensors;
  const auto& copy = copies.copy[blockIdx.y];
  for (int token = blockIdx.x; token < copy.tokens; token += gridDim.x) {
    const std::int64_t from = std::int64_t{copy.from} * copies.page_size + token;
    const std::int64_t to = std::int64_t{copy.to} * copies.page_size + token;
    for (int i = threadIdx.x; i < pieces_of(tensors); i += kThreads) {
      const Piece at(i, tensors.head_dim);
      const std::int64_t k = at.head * tensors.k_head_stride + at.column;
      const std::int64_t v = at.head * tensors.v_head_stride + at.column;
      copy_piece<T>(tensors.k, from * tensors.k_row_stride + k, tensors.k, to * tensors.k_row_stride + k);
      copy_piece<T>(tensors.v, from * tensors.v_row_stride + v, tensors.v, to * tensors.v_row_stride + v);
    }
  }
}

__device__ __forceinline__ void add_key(float (&sum)[kPiece], const uint4& keys, __nv_bfloat16) {
  const std::uint32_t words[4] = {keys.x, keys.y, keys.z, keys.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack<__nv_bfloat16>(words[i]);
    sum[2 * i] += pair.x, sum[2 * i + 1] += pair.y;
  }
}
__device__ __forceinline__ void add_key(float (&sum)[kPiece], const uint4& keys, __half) {
  const std::uint32_t words[4] = {keys.x, keys.y, keys.z, keys.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack<__half>(words[i]);
    sum[2 * i] += pair.x, sum[2 * i + 1] += pair.y;
  }
}

__device__ __forceinline__ void load_sums(float (&sum)[kPiece], const float* from) {
  const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
  sum[0] = low.x, sum[1] = low.y, sum[2] = low.z, sum[3] = low.w;
  sum[4] = high.x, sum[5] = high.y, sum[6] = high.z, sum[7] = high.w;
}

__device__ __forceinline__ void store_sums(float* to, const float (&sum)[kPiece]) {
  reinterpret_cast<float4*>(to)[0] = {sum[0], sum[1], sum[2], sum[3]};
  reinterpret_cast<float4*>(to)[1] = {sum[4], sum[5], sum[6], sum[7]};
}

/// As write_mean of src/block_mean.h: a division in float32, rounded once.
template <class T>
__device__ __forceinline__ void store_mean(const PagedTensors& tensors, std::int64_t row, const Piece& at,
                                           const float (&sum)[kPiece]) {
  float mean[kPiece];
#pragma unroll
  for (int i = 0; i < kPiece; ++i) mean[i] = __fdiv_rn(sum[i], static_cast<float>(tensors.block_size));
  T* to = static_cast<T*>(tensors.representatives) + row * tensors.r_row_stride + at.head * tensors.r_head_stride +
          at.column;
  *reinterpret_cast<uint4*>(to) = {pack<T>(mean[0], mean[1]), pack<T>(mean[2], mean[3]), pack<T>(mean[4], mean[5]),
                                   pack<T>(mean[6], mean[7])};
}

__device__ __forceinline__ float* sums_of(const PagedTensors& tensors, std::int64_t sequence, const Piece& at) {
  return tensors.sums + sequence * tensors.s_row_stride + at.head * tensors.s_head_stride + at.column;
}

/// One block of tokens of part y by CTA (x, y): the x-th from the part's first new token on, or, with kLast, the block
/// that its last token lies in. Blocks but the last are closed by this call, and are done where kLast is false.
template <class T, bool kLast>
__global__ void __launch_bounds__(kThreads) write_tokens_kernel(const __grid_constant__ TokenWrites writes) {
  const PagedTensors& tensors = writes.tensors;
  const PagedRows rows(writes.batch, blockIdx.y);
  const std::int64_t sequence = writes.batch.sequence[blockIdx.y];
  const auto& part = writes.part[blockIdx.y];
  const int before = max(0, rows.length - part.count);
  if (rows.length == before) return;
  const int run = tensors.block_size > 0 ? tensors.block_size : kThreads;  // tokens of a CTA
  const int last = (rows.length - 1) / run;
  const int block = kLast ? last : before / run + static_cast<int>(blockIdx.x);
  if (!kLast && block >= last) return;
  const int begin = max(before, block * run), end = min(rows.length, (block + 1) * run);
  const bool sums = tensors.block_size > 0;
  for (int i = threadIdx.x; i < pieces_of(tensors); i += kThreads) {
    const Piece at(i, tensors.head_dim);
    const std::int64_t k_new = at.head * writes.k_head_stride + at.column;
    const std::int64_t v_new = at.head * writes.v_head_stride + at.column;
    const std::int64_t k_old = at.head * tensors.k_head_stride + at.column;
    const std::int64_t v_old = at.head * tensors.v_head_stride + at.column;
    float sum[kPiece] = {};
    if (sums && begin > block * run) load_sums(sum, sums_of(tensors, sequence, at));
    for (int position = begin; position < end; ++position) {
      const std::int64_t row = rows.row(position);
      const std::int64_t from = part.first + position - before;
      const uint4 key =
          *reinterpret_cast<const uint4*>(static_cast<const T*>(writes.k) + from * writes.k_row_stride + k_new);
      *reinterpret_cast<uint4*>(static_cast<T*>(tensors.k) + row * tensors.k_row_stride + k_old) = key;
      copy_piece<T>(writes.v, from * writes.v_row_stride + v_new, tensors.v, row * tensors.v_row_stride + v_old);
      if (sums) add_key(sum, key, T{});
    }
    if (!sums) continue;
    if (end == (block + 1) * run) store_mean<T>(tensors, rows.page(rows.page_index(end - 1)), at, sum);
    if (kLast) store_sums(sums_of(tensors, sequence, at), sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    rebuild_sums_kernel(const __grid_constant__ PagedTensors tensors, const __grid_constant__ PagedSequences batch) {
  const PagedRows rows(batch, blockIdx.x);
  const int begin = rows.length / tensors.block_size * tensors.block_size;
  for (int i = threadIdx.x; i < pieces_of(tensors); i += kThreads) {
    const Piece at(i, tensors.head_dim);
    float sum[kPiece] = {};
    for (int position = begin; position < rows.length; ++position) {
      const std::int64_t place =
          rows.row(position) * tensors.k_row_stride + at.head * tensors.k_head_stride + at.column;
      add_key(sum, *reinterpret_cast<const uint4*>(static_cast<const T*>(tensors.k) + place), T{});
    }
    store_sums(sums_of(tensors, batch.sequence[blockIdx.x], at), sum);
  }
}

/// Tokens x, x + gridDim.x, …, then the representatives of the blocks likewise.
template <class T>
__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ GatherProblem problem) {
  const PagedTensors& tensors = problem.tensors;
  const PagedRows rows(problem.batch, 0);
  const std::int64_t row_size = std::int64_t{tensors.kv_heads} * tensors.head_dim;
  if (blockIdx.x == 0 && threadIdx.x < 2) {
    problem.cu_seqlens_q[threadIdx.x] = threadIdx.x * problem.rows;
    problem.cu_seqlens_k[threadIdx.x] = threadIdx.x * problem.length;
  }
  const int length = static_cast<int>(problem.length);
  for (int position = blockIdx.x; position < length; position += gridDim.x) {
    const std::int64_t row = rows.row(position);
    for (int i = threadIdx.x; i < pieces_of(tensors); i += kThreads) {
      const Piece at(i, tensors.head_dim);
      const std::int64_t to = position * row_size + i * kPiece;
      copy_piece<T>(tensors.k, row * tensors.k_row_stride + at.head * tensors.k_head_stride + at.column, problem.k, to);
      copy_piece<T>(tensors.v, row * tensors.v_row_stride + at.head * tensors.v_head_stride + at.column, problem.v, to);
    }
  }
  if (problem.representatives == nullptr) return;
  for (int block = blockIdx.x; block < length / tensors.block_size; block += gridDim.x) {
    const std::int64_t row = rows.page(rows.page_index((block + 1) * tensors.block_size - 1));
    for (int i = threadIdx.x; i < pieces_of(tensors); i += kThreads) {
      const Piece at(i, tensors.head_dim);
      copy_piece<T>(tensors.representatives, row * tensors.r_row_stride + at.head * tensors.r_head_stride + at.column,
                    problem.representatives, block * row_size + i * kPiece);
    }
  }
}

}  // namespace

void launch_set_tables(cudaStream_t stream, const TableEntries& entries) {
  set_tables_kernel<<<1, kMostEntries, 0, stream>>>(entries);
  check_cuda(cudaGetLastError(), "set_tables");
}

void launch_copy_pages(cudaStream_t stream, DType dtype, const PageCopies& copies) {
  const dim3 grid(static_cast<unsigned>(std::min(copies.page_size, 64)), static_cast<unsigned>(copies.count));
  dispatch_instance(dtype, copies.tensors.head_dim,
                    [&]<class T, int>() { copy_pages_kernel<T><<<grid, kThreads, 0, stream>>>(copies); });
  check_cuda(cudaGetLastError(), "copy_pages");
}

void launch_write_tokens(cudaStream_t stream, DType dtype, const TokenWrites& writes, std::int64_t most) {
  const std::int64_t run = writes.tensors.block_size > 0 ? writes.tensors.block_size : kThreads;
  const auto parts = static_cast<unsigned>(writes.batch.count);
  dispatch_instance(dtype, writes.tensors.head_dim, [&]<class T, int>() {
    if (most > 1) {
      const dim3 grid(static_cast<unsigned>((most + run - 2) / run), parts);
      write_tokens_kernel<T, false><<<grid, kThreads, 0, stream>>>(writes);
    }
    write_tokens_kernel<T, true><<<dim3(1, parts), kThreads, 0, stream>>>(writes);
  });
  check_cuda(cudaGetLastError(), "write_tokens");
}

void launch_rebuild_sums(cudaStream_t stream, DType dtype, const PagedTensors& tensors, const PagedSequences& batch) {
  dispatch_instance(dtype, tensors.head_dim, [&]<class T, int>() {
    rebuild_sums_kernel<T><<<static_cast<unsigned>(batch.count), kThreads, 0, stream>>>(tensors, batch);
  });
  check_cuda(cudaGetLastError(), "rebuild_sums");
}

void launch_gather(cudaStream_t stream, DType dtype, const GatherProblem& problem) {
  const auto grid = static_cast<unsigned>(std::clamp<std::int64_t>(problem.length, 1, 4096));
  dispatch_instance(dtype, problem.tensors.head_dim,
                    [&]<class T, int>() { gather_kernel<T><<<grid, kThreads, 0, stream>>>(problem); });
  check_cuda(cudaGetLastError(), "gather");
}

}  // namespace moba::cuda
