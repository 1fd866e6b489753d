// Tiles of query rows for the units of large blocks: each row of q and dO is copied once for the block and not once for
// each of its units, to where the copy engine finds whole tiles as they lie in shared memory.
#include <algorithm>

#include "cuda/cuda_check.h"
#include "cuda/device/copy.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/sm90/backward.h"
#include "cuda/sm90/backward_tiles.cuh"

namespace moba::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kDim = 128, kRows = tile_rows_of(kDim);
static_assert(!takes_turns(kFewestTurns, 64));

/// A tile of `count` rows of a head of the chunk; a warp copies a row, the first half of it that of q.
__device__ __forceinline__ void pack_tile(const BackwardChunk& chunk, int head, std::int64_t number,
                                          const std::uint32_t* entries, int own_row, int count) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int of_call = chunk.first_kv_head * chunk.group + head;
  const auto entry_of = [&](int at) {
    return entries == nullptr
               ? static_cast<std::uint32_t>(own_row + at) << kSlotBits | static_cast<std::uint32_t>(chunk.budget)
               : entries[at];
  };
  number += static_cast<std::int64_t>(head) * chunk.head_tiles;
  const RowsOf& tensor = lane < 16 ? chunk.q : chunk.dout;
  const auto* from = static_cast<const std::uint16_t*>(tensor.data) + chunk.first_row * tensor.token_stride +
                     of_call * tensor.head_stride + lane % 16 * 8;
  char* to = reinterpret_cast<char*>(chunk.tiles + (number * 2 + lane / 16) * (kRows * kDim));
  uint4 words[kRows / kWarps];
#pragma unroll
  for (int i = 0; i < kRows / kWarps; ++i) {
    const int at = i * kWarps + warp;
    words[i] = at < count ? *reinterpret_cast<const uint4*>(
                                from + static_cast<std::int64_t>(entry_of(at) >> kSlotBits) * tensor.token_stride)
                          : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int i = 0; i < kRows / kWarps; ++i) {
    *reinterpret_cast<uint4*>(to + swizzled_offset(kRows, i * kWarps + warp, lane % 16)) = words[i];
  }
  if (threadIdx.x >= kRows) return;
  const int at = static_cast<int>(threadIdx.x);
  RowTerm term = {-minus_infinity(), 0.0f};
  if (at < count) {
    const std::uint32_t entry = entry_of(at), row = entry >> kSlotBits, slot = entry & ((1u << kSlotBits) - 1);
    term = chunk.terms[of_call * chunk.total_rows + chunk.first_row + row];
    chunk.tile_rows[(row * static_cast<std::uint32_t>(chunk.kv_heads * chunk.group) + head) *
                        static_cast<std::uint32_t>(chunk.budget + 1) +
                    slot] = static_cast<std::uint32_t>(number) * kRows + at;
  }
  chunk.tile_terms[number * kRows + at] = term;
}

/// Thread blocks (block, head, z): the tiles z, z + gridDim.z, … of the block's list and own rows.
__global__ void __launch_bounds__(kThreads) pack_tiles_kernel(const BackwardChunk chunk) {
  const int head = static_cast<int>(blockIdx.y), kv_head = head / chunk.group;
  const KeyUnit unit =
      key_unit(chunk, (kv_head * static_cast<std::uint32_t>(chunk.block_rows) + blockIdx.x) * chunk.unit_tiles, kRows);
  if (unit.keys == 0) return;
  const ListedRows listed(chunk, unit, chunk.first_kv_head * chunk.group + head);
  const int listed_tiles = static_cast<int>((listed.count + kRows - 1) / kRows);
  // Where one chunk has all rows, the units of a block without any have one tile, of none, because they write zeros.
  const int tiles = max(listed_tiles + (unit.own_rows + kRows - 1) / kRows, chunk.sums == nullptr ? 1 : 0);
  const int first_listed = first_listed_tile(chunk, unit, listed, kRows), first_own = first_own_tile(unit, kRows);
  for (int index = static_cast<int>(blockIdx.z); index < tiles; index += static_cast<int>(gridDim.z)) {
    const bool own = index >= listed_tiles;
    const int tile = own ? index - listed_tiles : index, first = tile * kRows;
    pack_tile(chunk, head, (own ? first_own : first_listed) + tile,
              own ? nullptr : chunk.entries + listed.begin + first, unit.own_row + first,
              min(own ? unit.own_rows : static_cast<int>(listed.count), first + kRows) - first);
  }
}

}  // namespace

void launch_pack_tiles(const BackwardChunk& chunk, cudaStream_t stream) {
  const std::int64_t lists = chunk.block_rows * chunk.kv_heads * chunk.group;
  if (chunk.turns == nullptr || lists == 0) return;
  constexpr std::int64_t kThreadBlocks = 8192;  // enough for all processors, of several tiles each
  const dim3 grid(static_cast<unsigned>(chunk.block_rows), static_cast<unsigned>(chunk.kv_heads * chunk.group),
                  static_cast<unsigned>(std::clamp<std::int64_t>(kThreadBlocks / lists, 1, 1024)));
  pack_tiles_kernel<<<grid, kThreads, 0, stream>>>(chunk);
  check_cuda(cudaGetLastError(), "attend_backward: tiles of query rows");
}

}  // namespace moba::cuda
