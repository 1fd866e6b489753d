// Causal attention inside each row's own block, and the merge with the row's partial results.
//
// One warpgroup takes 64 consecutive rows of a sequence and one head. Several thread blocks share a multiprocessor, so
// that the copies, products, exponentials and merges of some hide behind those of others.
#include <cfloat>

#include "cuda/attend.h"
#include "cuda/cuda_check.h"
#include "cuda/dependent_launch.h"
#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/instances.h"
#include "cuda/sm90/sequence_lookup.cuh"

namespace moba::cuda {
namespace {

constexpr int kRows = kOwnRows;
constexpr int kKeys = kOwnRows;
constexpr int kThreads = 128;
constexpr int kBlocksPerMultiprocessor = 4;

template <class T, int kDim>
struct OwnStorage {
  alignas(1024) T q[kRows * kDim];
  alignas(1024) T k[kKeys * kDim];
  alignas(1024) T v[kKeys * kDim];
  Barrier q_full, k_full, v_full;
};

/// Consecutive rows of one sequence. Tile i of sequence s has the index (rows of the slice before it) / 64 + s + i, so
/// that no two sequences share one and the grid is known from shapes: rows / 64 + sequences.
struct RowTile {
  std::int64_t row;       // packed, the first
  std::int32_t rows = 0;  // 0: there is no such tile
  std::int64_t k_begin;   // packed, of the sequence
  std::int64_t position;  // of the first row among the keys; may be negative

  __device__ __forceinline__ RowTile(const OwnArgs& args, std::int64_t index) {
    // The part of sequence s in the slice.
    const auto begin_of = [&](std::int64_t s) {
      const std::int64_t begin = args.sequences[s].q_begin;
      return min(max(begin, args.first_row), args.first_row + args.rows);
    };
    std::int64_t low = 0, high = args.sequence_count;  // the first sequence whose tiles begin after `index`
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if ((begin_of(middle) - args.first_row) / kRows + middle <= index) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    const std::int64_t s = low - 1;  // sequence 0 begins at index 0 or later; before it there is no tile
    if (s < 0) return;
    const SequenceSpan span = args.sequences[s];
    const std::int64_t begin = begin_of(s), tile = index - ((begin - args.first_row) / kRows + s);
    const std::int64_t end = min(span.q_begin + span.q_length, args.first_row + args.rows);
    row = begin + tile * kRows;
    if (row >= end) return;
    rows = static_cast<std::int32_t>(min(end - row, static_cast<std::int64_t>(kRows)));
    k_begin = span.k_begin;
    position = row - span.q_begin + span.k_length - span.q_length;
  }
};

/// The row's own keys, counted from the tile's first key: [low, high).
struct OwnKeys {
  std::int32_t low, high;
};

/// Where a row's result became NaN or infinite, a value of a masked key may be the cause (0 * NaN): its own keys are
/// attended once more, one at a time. Rows of the warp one after the other, all lanes on each.
template <class T, int kDim>
__device__ __noinline__ void attend_row_alone(const OwnArgs& args, const T* q, const T* k, const T* v,
                                              std::int32_t keys, float* result, float* lse) {
  constexpr int kShare = kDim / 32;
  const int lane = threadIdx.x % 32;
  float maximum = minus_infinity(), sum = 0.0f, o[kShare] = {};
  for (std::int32_t key = 0; key < keys; ++key) {
    float score = 0.0f;
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      score += to_float(q[lane + 32 * i]) * to_float(k[key * args.k_row_stride + lane + 32 * i]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) score += __shfl_xor_sync(0xffffffffu, score, step);
    score *= args.softmax_scale;
    const float high = fmaxf(maximum, score), offset = high == minus_infinity() ? 0.0f : high;
    const float shrink = expf(maximum - offset), weight = expf(score - offset);
    maximum = high;
    sum = sum * shrink + weight;
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      o[i] = o[i] * shrink + weight * to_float(v[key * args.v_row_stride + lane + 32 * i]);
    }
  }
  const bool empty = maximum == minus_infinity() && sum == 0.0f;
#pragma unroll
  for (int i = 0; i < kShare; ++i) result[lane + 32 * i] = empty ? 0.0f : o[i] / sum;
  *lse = empty ? minus_infinity() : maximum + logf(sum);
}

/// Partial results are fetched into L2 this many slots before they are read, the first while the products run.
constexpr std::int32_t kSlotsAhead = 3;

/// The two rows of a thread: `packed`, and the one `distance` rows behind it. Rows that are not valid stand for the
/// tile's first and are never stored.
struct RowPair {
  std::int64_t packed;
  std::int32_t distance;
  bool valid[2];
};

/// Adds the rows' partial results, slot by slot, to their own (o, normalised, and lse), and writes out and lse.
template <class T, int kDim>
__device__ __forceinline__ void merge_and_store(const OwnArgs& args, std::int32_t head, const RowPair& rows,
                                                float (&o)[kDim / 2], const float (&lse)[2]) {
  const Partials& partials = args.partials;
  const int lane = threadIdx.x % 4;
  const auto has_partial = [](float value) { return __float_as_uint(value) != 0xffffffffu; };
  const std::int64_t place = partials.place(rows.packed - partials.first_row, head);
  const float* slot_lse = partials.lse + place;
  const T* slot_out = static_cast<const T*>(partials.out) + place * kDim + lane * 8;
  const std::int32_t between = rows.distance * partials.budget;  // slots from row 0 to row 1
  float offset[2], total[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float maximum = lse[i];
    for (std::int32_t slot = 0; slot < partials.budget; ++slot) {
      const float value = __ldg(slot_lse + i * between + slot);
      if (has_partial(value)) maximum = fmaxf(maximum, value);
    }
    offset[i] = maximum == minus_infinity() ? 0.0f : maximum;
    total[i] = exp2_fast((lse[i] - offset[i]) * kLog2E);
  }
#pragma unroll
  for (int j = 0; j < kDim / 2; ++j) o[j] = total[j >> 1 & 1] == 0.0f ? 0.0f : o[j] * total[j >> 1 & 1];
  // Partial results lie in the order of the accumulator.
  for (std::int32_t slot = 0; slot < partials.budget; ++slot, ++slot_lse, slot_out += kDim) {
    uint4 words[2][kDim / 32];
    float weight[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float value = __ldg(slot_lse + i * between);
      weight[i] = has_partial(value) ? exp2_fast((value - offset[i]) * kLog2E) : 0.0f;
      total[i] += weight[i];
      const T* from = slot_out + i * between * kDim;
      if (slot + kSlotsAhead < partials.budget && lane < kDim / 64) {
        prefetch_line(from - lane * 8 + kSlotsAhead * kDim + lane * 64);
      }
#pragma unroll
      for (int part = 0; part < kDim / 32; ++part) {
        words[i][part] = weight[i] == 0.0f ? uint4{} : __ldcs(reinterpret_cast<const uint4*>(from + part * 32));
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int part = 0; part < kDim / 32; ++part) {
        const std::uint32_t word[4] = {words[i][part].x, words[i][part].y, words[i][part].z, words[i][part].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 pair = unpack<T>(word[j]);
          const int at = 4 * (4 * part + j) + 2 * i;
          o[at] = fmaf(weight[i], pair.x, o[at]);
          o[at + 1] = fmaf(weight[i], pair.y, o[at + 1]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float inverse = total[i] == 0.0f ? 0.0f : 1.0f / total[i];
    const std::int64_t row = rows.packed + i * rows.distance;
    T* out = static_cast<T*>(args.out) + row * args.out_row_stride + head * args.out_head_stride + lane * 8;
#pragma unroll
    for (int part = 0; part < kDim / 32; ++part) {
      std::uint32_t word[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = 4 * (4 * part + j) + 2 * i;
        word[j] = pack<T>(o[at] * inverse, o[at + 1] * inverse);
      }
      quad_transpose(word);  // whole groups of eight columns
      if (rows.valid[i]) *reinterpret_cast<uint4*>(out + part * 32) = uint4{word[0], word[1], word[2], word[3]};
    }
    if (rows.valid[i] && lane == 0) {
      args.lse[head * args.lse_head_stride + row] =
          total[i] == 0.0f ? minus_infinity() : offset[i] + logf(total[i]);
    }
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    attend_own_kernel(const __grid_constant__ OwnArgs args, const __grid_constant__ CUtensorMap q_map,
                      const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map) {
  extern __shared__ char shared[];
  auto& storage = *reinterpret_cast<OwnStorage<T, kDim>*>(shared + (1024 - shared_address(shared) % 1024) % 1024);
  // Only the merge needs what attend_history does, and that began when all before it was complete.
  if (args.partials.budget == 0) wait_for_launch_before();
  const RowTile tile(args, blockIdx.x);
  if (tile.rows == 0) {
    wait_for_launch_before();
    return;
  }
  const auto head = static_cast<std::int32_t>(args.partials.first_head + blockIdx.y);
  const std::int32_t kv_head = head / args.heads_per_kv;

  // Keys of the tile: from the start of the first row's own block to the last row's position. Positions fit 32 bits,
  // and divisions of 64 would cost as much as the products of a small block.
  const auto block_size = static_cast<std::uint32_t>(args.block_size);
  const auto block_start = [&](std::int32_t position) {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(position) / block_size * block_size);
  };
  const auto first_position = static_cast<std::int32_t>(tile.position);
  const std::int32_t first_key = block_start(max(first_position, 0));
  const std::int32_t key_count = max(first_position + tile.rows - first_key, 0);
  const std::int32_t key_tiles = (key_count + kKeys - 1) / kKeys;
  const auto own_keys = [&](int row) {
    const std::int32_t position = first_position + min(row, tile.rows - 1);
    if (position < 0) return OwnKeys{0, 0};
    return OwnKeys{block_start(position) - first_key, position + 1 - first_key};
  };

  constexpr std::uint32_t kTileBytes = kKeys * kDim * sizeof(T);
  const auto order = [&](T* to, const CUtensorMap* map, Barrier& full, std::int64_t row, std::int32_t of_head) {
    full.arrive_expecting(kTileBytes);
    copy_tile<kKeys, kDim>(to, map, &full, static_cast<int>(row), of_head);
  };
  if (threadIdx.x == 0) {
    storage.q_full.init(1);
    storage.k_full.init(1);
    storage.v_full.init(1);
    fence_barrier_init();
    if (key_tiles > 0) {
      order(storage.q, &q_map, storage.q_full, tile.row, head);
      order(storage.k, &k_map, storage.k_full, tile.k_begin + first_key, kv_head);
      order(storage.v, &v_map, storage.v_full, tile.k_begin + first_key, kv_head);
    }
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row_in_tile[2] = {warp * 16 + lane / 4, warp * 16 + lane / 4 + 8};
  RowPair rows;
  rows.valid[0] = row_in_tile[0] < tile.rows, rows.valid[1] = row_in_tile[1] < tile.rows;
  rows.packed = tile.row + (rows.valid[0] ? row_in_tile[0] : 0);
  rows.distance = rows.valid[1] ? row_in_tile[1] - row_in_tile[0] : 0;
  if (args.partials.budget > 0 && lane < 16 && warp * 16 + lane < tile.rows) {
    const Partials& partials = args.partials;
    const std::int64_t place = partials.place(tile.row + warp * 16 + lane - partials.first_row, head);
    prefetch_bytes(static_cast<const T*>(partials.out) + place * kDim,
                   min(partials.budget, kSlotsAhead) * kDim * static_cast<int>(sizeof(T)));
  }
  const OwnKeys own[2] = {own_keys(row_in_tile[0]), own_keys(row_in_tile[1])};
  const OwnKeys first_own = own_keys(0), last_own = own_keys(kRows - 1);
  const float scale_log2 = args.softmax_scale * kLog2E;
  RowState state;
  float o[kDim / 2];
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) o[i] = 0.0f;

  if (key_tiles > 0) storage.q_full.wait(0);
  for (std::int32_t key_tile = 0; key_tile < key_tiles; ++key_tile) {
    const std::uint32_t parity = key_tile & 1;
    const std::int32_t key = key_tile * kKeys;
    const bool more = key_tile + 1 < key_tiles;
    float scores[kKeys / 2], shrink[2];
    storage.k_full.wait(parity);
    wgmma_fence();
    wgmma_tiles<T, kKeys, kDim / 16, Major::K, Major::K>(scores, tile_descriptor<Major::K>(storage.q, kRows), kRows,
                                                         tile_descriptor<Major::K>(storage.k, kKeys), kKeys, false);
    wgmma_commit();
    wgmma_wait<0>();
    hold_registers(scores);
    __syncthreads();
    if (more && threadIdx.x == 0) {
      order(storage.k, &k_map, storage.k_full, tile.k_begin + first_key + key + kKeys, kv_head);
    }
    if (key < last_own.low || key + kKeys > first_own.high) {  // some row must not see some key
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const std::int32_t at = key + i / 4 * 8 + 2 * (lane % 4) + (i & 1);
        const OwnKeys& seen = own[i >> 1 & 1];
        if (at < seen.low || at >= seen.high) scores[i] = minus_infinity();
      }
    }
    state.update<kKeys, false>(scores, scale_log2, shrink);
    scale_rows<kDim>(o, shrink);
    std::uint32_t p[kKeys / 4];
    pack_rows<T, kKeys>(p, scores);
    storage.v_full.wait(parity);
    hold_registers(o);
    wgmma_fence();
    wgmma_tiles<T, kDim, kKeys / 16, Major::MN>(o, p, tile_descriptor<Major::MN>(storage.v, kKeys), kKeys, true);
    wgmma_commit();
    wgmma_wait<0>();
    hold_registers(o);
    __syncthreads();
    if (more && threadIdx.x == 0) {
      order(storage.v, &v_map, storage.v_full, tile.k_begin + first_key + key + kKeys, kv_head);
    }
  }

  float factor[2], lse[2];
  state.finish(args.softmax_scale, factor, lse);
  scale_rows<kDim>(o, factor);

  // Rows spoiled by what they must not see, done again; see attend_row_alone().
  bool spoiled[2] = {false, false};
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) spoiled[i >> 1 & 1] |= !(fabsf(o[i]) <= FLT_MAX);
  const unsigned any[2] = {__ballot_sync(0xffffffffu, spoiled[0]), __ballot_sync(0xffffffffu, spoiled[1])};
  if ((any[0] | any[1]) != 0) {
    float* result = reinterpret_cast<float*>(storage.k) + warp * kDim;  // no copy is under way any more
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      for (int quad = 0; quad < 8; ++quad) {
        if ((any[i] >> (4 * quad) & 15u) == 0) continue;
        const int row = warp * 16 + quad + 8 * i;
        if (row >= tile.rows) continue;
        const OwnKeys seen = own_keys(row);
        const std::int64_t begin = tile.k_begin + first_key + seen.low;
        float row_lse = 0.0f;
        attend_row_alone<T, kDim>(
            args, static_cast<const T*>(args.q) + (tile.row + row) * args.q_row_stride + head * args.q_head_stride,
            static_cast<const T*>(args.k) + begin * args.k_row_stride + kv_head * args.k_head_stride,
            static_cast<const T*>(args.v) + begin * args.v_row_stride + kv_head * args.v_head_stride,
            seen.high - seen.low, result, &row_lse);
        __syncwarp();
        if (lane / 4 == quad) {
          lse[i] = row_lse;
#pragma unroll
          for (int j = 0; j < kDim / 8; ++j) {
            o[4 * j + 2 * i] = result[8 * j + 2 * (lane % 4)];
            o[4 * j + 2 * i + 1] = result[8 * j + 2 * (lane % 4) + 1];
          }
        }
        __syncwarp();
      }
    }
  }

  wait_for_launch_before();
  merge_and_store<T, kDim>(args, head, rows, o, lse);
}

template <class T, int kDim>
__global__ void fill_unheld_rows_kernel(const __grid_constant__ OwnArgs args, std::int64_t rows, std::int32_t heads) {
  for (std::int64_t row = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; row < rows;
       row += gridDim.x * std::int64_t{blockDim.x}) {
    if (sequence_of_row(args.sequences, args.sequence_count, row) >= 0) continue;
    for (std::int32_t head = 0; head < heads; ++head) {
      T* out = static_cast<T*>(args.out) + row * args.out_row_stride + head * args.out_head_stride;
      for (int i = 0; i < kDim; i += 8) *reinterpret_cast<uint4*>(out + i) = uint4{0, 0, 0, 0};
      args.lse[head * args.lse_head_stride + row] = minus_infinity();
    }
  }
}

}  // namespace

void launch_attend_own(cudaStream_t stream, DType dtype, std::int64_t head_dim, const OwnArgs& args,
                       const CUtensorMap& q_map, const CUtensorMap& k_map, const CUtensorMap& v_map) {
  if (args.rows == 0 || args.partials.heads == 0) return;
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    const auto kernel = attend_own_kernel<T, kDim>;
    constexpr int kBytes = sizeof(OwnStorage<T, kDim>) + 1024;
    const dim3 grid(static_cast<unsigned>(args.rows / kRows + args.sequence_count),
                    static_cast<unsigned>(args.partials.heads));
    launch_dependent(kernel, "attend_own_kernel", grid, kThreads, kBytes, stream, args, q_map, k_map, v_map);
  });
}

void launch_fill_unheld_rows(cudaStream_t stream, DType dtype, std::int64_t head_dim, const OwnArgs& args,
                             std::int64_t rows, std::int32_t heads) {
  if (rows == 0) return;
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    constexpr int kFillThreads = 256;
    const auto grid = static_cast<unsigned>(min((rows + kFillThreads - 1) / kFillThreads, std::int64_t{1024}));
    fill_unheld_rows_kernel<T, kDim><<<grid, kFillThreads, 0, stream>>>(args, rows, heads);
    check_cuda(cudaGetLastError(), "fill_unheld_rows_kernel");
  });
}

}  // namespace moba::cuda
