// The work list of the products: units in order of their block, so that the blocks of the beginning, which most rows
// can choose, come first; a unit with more tiles than the limit is cut into parts. They are of equal size, but where
// units take turns: there all units of a block are cut at the same tiles. A part that began with tiles at which another
// unit's part ends would wait for its turn until that part is nearly done.
#include "cuda/cuda_check.h"
#include "cuda/sm90/backward.h"
#include "cuda/sm90/backward_tiles.cuh"

namespace moba::cuda {
namespace {

constexpr int kThreads = 256;
static_assert(kThreads >= kMostTurns);

/// Which item a part becomes, and which slab it gets, changes with the order in which thread blocks come; what a unit's
/// slabs hold, and the order in which they are added, does not. A thread block takes `units`, a multiple of those of a
/// block where they take turns: who waits for a turn is then listed after whom it waits for. blockIdx.y is the chunk.
__global__ void __launch_bounds__(kThreads)
    list_items_kernel(const __grid_constant__ BackwardRound round, int tile_rows, int units) {
  __shared__ int warp_parts[kThreads / 32];
  __shared__ int first_item;
  const BackwardChunk chunk = round.chunk(static_cast<int>(blockIdx.y));
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * units + threadIdx.x;
  const bool valid = static_cast<int>(threadIdx.x) < units && index < chunk.units();
  int tiles = 0, parts = 0;
  KeyUnit unit{};
  if (valid) {
    unit = key_unit(chunk, static_cast<std::uint32_t>(index), tile_rows);
    if (unit.keys > 0) {
      tiles = static_cast<int>(tiles_of(chunk, unit, tile_rows));
      // A unit without rows still has to write its zeros, unless sums over all row chunks start as zero.
      parts = max((tiles + chunk.tile_limit - 1) / chunk.tile_limit, chunk.sums == nullptr ? 1 : 0);
    }
  }
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  int before = parts;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, before, step);
    if (lane >= step) before += other;
  }
  if (lane == 31) warp_parts[warp] = before;
  before -= parts;
  __syncthreads();
  if (threadIdx.x == 0) {
    int total = 0;
    for (int& of_warp : warp_parts) {
      const int count = of_warp;
      of_warp = total;
      total += count;
    }
    first_item = atomicAdd(&chunk.counters[kItemCount], total);
  }
  __syncthreads();
  if (!valid) return;
  const int slab = parts > 1 ? atomicAdd(&chunk.counters[kSlabCount], parts) : -1;
  chunk.unit_slabs[index] = {slab, parts};
  if (parts > 1) chunk.cut_units[atomicAdd(&chunk.counters[kCutUnitCount], 1)] = static_cast<std::int32_t>(index);
  BackwardItem* items = chunk.items + first_item + warp_parts[warp] + before;
  if (parts == 0) return;
  const ListedRows listed(chunk, unit, unit.kv_head * chunk.group);
  const bool turns = chunk.turns != nullptr;
  const int share = turns ? chunk.tile_limit : tiles / parts, larger = turns ? 0 : tiles % parts;
  int first = 0;
  for (int part = 0; part < parts; ++part) {
    const int size = min(share + (part < larger ? 1 : 0), tiles - first);
    items[part] = {unit,  listed.begin, static_cast<std::int32_t>(listed.count),
                   first, size,         parts > 1 ? slab + part : -1};
    first += size;
  }
}

}  // namespace

void launch_list_items(const BackwardRound& round, int head_dim, cudaStream_t stream) {
  const BackwardChunk largest = round.chunk(0);
  const int units = largest.turns == nullptr ? kThreads : kThreads / largest.unit_tiles * largest.unit_tiles;
  const std::int64_t blocks = (largest.units() + units - 1) / units;
  if (blocks == 0) return;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(round.chunks));
  list_items_kernel<<<grid, kThreads, 0, stream>>>(round, tile_rows_of(head_dim), units);
  check_cuda(cudaGetLastError(), "attend_backward: list of items");
}

}  // namespace moba::cuda
