// Attention of gathered query rows over the past block that they chose.
//
// A work item is a block and some of the rows that chose it; thread blocks take one after the other from a counter. Its
// rows are taken a tile at a time: three warps gather them with 16-byte copies, up to three tiles ahead, another orders
// K and V of the block from the copy engine; two or three warpgroups multiply, 64 rows each. A block that fits one tile
// of keys stays in shared memory for all tiles of the item; a larger one streams through a ring once for every tile of
// rows. To the multiplying warpgroups all this is one sequence of steps (a tile of rows, a tile of keys), across tiles
// and items, see history_multiply.cuh.
#include <algorithm>

#include "cuda/attend.h"
#include "cuda/dependent_launch.h"
#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/instances.h"
#include "cuda/sm90/history_multiply.cuh"
#include "cuda/sm90/history_producer.cuh"

namespace moba::cuda {
namespace {

using namespace history;

template <class T, int kDim, int kKeys>
__global__ void __launch_bounds__(HistoryShape<kDim>::kThreads, 1)
    attend_history_kernel(const __grid_constant__ HistoryArgs args, const __grid_constant__ CUtensorMap k_map,
                          const __grid_constant__ CUtensorMap v_map) {
  using Shape = HistoryShape<kDim>;
  extern __shared__ char shared[];
  auto& storage = first_panel<HistoryStorage<T, kDim, kKeys>>(shared);
  if (threadIdx.x == 0) {
    prefetch_map(&k_map);
    prefetch_map(&v_map);
    for (int i = 0; i < kQueryStages; ++i) {
      for (Barrier& copied : storage.q_copied[i]) copied.init(32);
      storage.q_full[i].init(kGatherWarps);
      storage.q_empty[i].init(Shape::kConsumerWarps);
    }
    for (int i = 0; i < kUnitStages; ++i) {
      storage.unit_full[i].init(1);
      storage.unit_empty[i].init(kGatherWarps + 1);
    }
    for (int i = 0; i < kKeyStages; ++i) {
      storage.k_full[i].init(1);
      storage.v_full[i].init(1);
      storage.k_empty[i].init(Shape::kConsumerWarps);
      storage.v_empty[i].init(Shape::kConsumerWarps);
    }
    fence_barrier_init();
  }
  wait_for_launch_before();
  allow_launch_after();
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<Shape::kProducerRegisters>();
    if (threadIdx.x >= 32) {
      produce_rows<T, kDim, kKeys>(args, storage);
    } else if (threadIdx.x == 0) {
      produce_keys<T, kDim, kKeys>(args, k_map, v_map, storage);
    }
  } else {
    take_registers<Shape::kConsumerRegisters>();
    Multiplier<T, kDim, kKeys>(args, storage).run();
  }
}

template <class T, int kDim, int kKeys>
void launch(cudaStream_t stream, const HistoryArgs& args, const CUtensorMap& k_map, const CUtensorMap& v_map,
            std::int64_t max_units) {
  const auto kernel = attend_history_kernel<T, kDim, kKeys>;
  constexpr int kBytes = sizeof(HistoryStorage<T, kDim, kKeys>) + kPanelAlignment;
  static_assert(kBytes <= 227 * 1024);
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(multiprocessors(), max_units));
  launch_dependent(kernel, "attend_history_kernel", grid, HistoryShape<kDim>::kThreads, kBytes, stream, args, k_map,
                   v_map);
}

}  // namespace

int history_key_rows(std::int64_t block_size) {
  return block_size <= 64 ? 64 : 128;
}

void launch_attend_history(cudaStream_t stream, DType dtype, std::int64_t head_dim, const HistoryArgs& args,
                           const CUtensorMap& k_map, const CUtensorMap& v_map, std::int64_t max_units) {
  if (max_units == 0) return;
  dispatch_instance(dtype, head_dim, [&]<class T, int kDim>() {
    if (history_key_rows(args.block_size) == 64) {
      launch<T, kDim, 64>(stream, args, k_map, v_map, max_units);
    } else {
      launch<T, kDim, 128>(stream, args, k_map, v_map, max_units);
    }
  });
}

}  // namespace moba::cuda
