// How warps hand data to each other through shared memory: every way that the kernels do it, and next to nothing
// beside. What a checker of races says about these is what it makes of the way itself:
//
//   compute-sanitizer --tool racecheck cuda_race_patterns right    must report nothing: what it does report is false
//   compute-sanitizer --tool racecheck cuda_race_patterns wrong    must report every hand_over (the reader of hand_back
//                                                                  is the copy engine, which it does not watch)
//
// Each way runs with the kernels' own Barrier and with that of libcu++, by NVIDIA's functions alone. The program
// compares what came with what was sent (exit code 1); where one side hastens ahead of its barrier it does not.
#include <cuda_pipeline.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <cuda/barrier>
#include <cuda/ptx>
#include <vector>

#include "cuda/device/barrier.cuh"
#include "cuda/device/copy.cuh"

namespace moba::test {
namespace {

constexpr int kStages = 2, kTiles = 8, kReaders = 2;  // warps that read; warp 0 writes
constexpr int kThreads = 32 * (1 + kReaders);

/// The barrier and the copies of the kernels.
struct Own : cuda::Barrier {
  static __device__ void copy_16(uint4* shared, const uint4* global) {
    cuda::copy_16_async(cuda::shared_address(shared), global);
  }
  __device__ void load(void* shared, const void* global, std::uint32_t bytes) {
    cuda::load_bulk(shared, global, bytes, this);
  }
};

/// The same calls in libcu++.
struct Library {
  ::cuda::barrier<::cuda::thread_scope_block> barrier;

  __device__ std::uint64_t* handle() { return ::cuda::device::barrier_native_handle(barrier); }
  __device__ void init(std::uint32_t arrivals) { ::cuda::ptx::mbarrier_init(handle(), arrivals); }
  __device__ void arrive() { static_cast<void>(barrier.arrive()); }
  __device__ void arrive_expecting(std::uint32_t bytes) {
    static_cast<void>(::cuda::device::barrier_arrive_tx(barrier, 1, bytes));
  }
  __device__ void arrive_after_copies() { ::cuda::ptx::cp_async_mbarrier_arrive_noinc(handle()); }
  __device__ bool done_now(std::uint32_t parity) { return ::cuda::ptx::mbarrier_test_wait_parity(handle(), parity); }
  __device__ void wait(std::uint32_t parity) { barrier.wait_parity(parity != 0); }
  static __device__ void copy_16(uint4* shared, const uint4* global) { __pipeline_memcpy_async(shared, global, 16); }
  __device__ void load(void* shared, const void* global, std::uint32_t bytes) {
    ::cuda::ptx::cp_async_bulk(::cuda::ptx::space_cluster, ::cuda::ptx::space_global, shared, global, bytes, handle());
  }
};

template <class B>
struct Shared {
  alignas(128) uint4 pieces[kStages][32];
  alignas(128) std::uint32_t words[kStages][32];
  B full[kStages], empty[kStages], copied[kStages];
};

/// One lane's part of a tile.
struct Part {
  const uint4* piece;
  std::uint32_t word;
};

/// What lets one lane arrive for its warp: __syncwarp(), or a barrier of the block that only the warp takes part in.
struct SyncWarp {
  static __device__ void sync() { __syncwarp(); }
};
struct SyncBarrier {
  static __device__ void sync() { cuda::named_sync(1 + static_cast<int>(threadIdx.x) / 32, 32); }
};

// The ways. A tile makes `kArrivals` at `full`, and each reading warp `kReleases` at `empty`.

/// Ordinary stores; every lane arrives.
struct Stores {
  static constexpr int kArrivals = 32, kReleases = 32;
  template <class B>
  static __device__ void write(Shared<B>& shared, int stage, int lane, const Part& part) {
    shared.pieces[stage][lane] = *part.piece;
    shared.words[stage][lane] = part.word;
    shared.full[stage].arrive();
  }
  template <class B>
  static __device__ void release(Shared<B>& shared, int stage, int) {
    shared.empty[stage].arrive();
  }
};

/// Ordinary stores; one lane arrives for its warp.
template <class Sync>
struct OneArrives : Stores {
  static constexpr int kArrivals = 1;
  template <class B>
  static __device__ void write(Shared<B>& shared, int stage, int lane, const Part& part) {
    shared.pieces[stage][lane] = *part.piece;
    shared.words[stage][lane] = part.word;
    Sync::sync();
    if (lane == 0) shared.full[stage].arrive();
  }
};

/// Ordinary stores; one lane releases for its warp.
template <class Sync>
struct OneReleases : Stores {
  static constexpr int kReleases = 1;
  template <class B>
  static __device__ void release(Shared<B>& shared, int stage, int lane) {
    Sync::sync();
    if (lane == 0) shared.empty[stage].arrive();
  }
};

/// Asynchronous copies and stores: the gathering warps of the backward pass.
struct CopiesAndStores : Stores {
  static constexpr int kArrivals = 64;
  template <class B>
  static __device__ void write(Shared<B>& shared, int stage, int lane, const Part& part) {
    B::copy_16(&shared.pieces[stage][lane], part.piece);
    shared.full[stage].arrive_after_copies();
    shared.words[stage][lane] = part.word;
    shared.full[stage].arrive();
  }
};

/// A warp waits for its own copies, then one lane arrives for it: the gathering warps of the forward pass.
template <class Sync>
struct HandedOn : Stores {
  static constexpr int kArrivals = 1;
  template <class B>
  static __device__ void write(Shared<B>& shared, int stage, int lane, const Part& part) {
    shared.words[stage][lane] = part.word;
    B::copy_16(&shared.pieces[stage][lane], part.piece);
    shared.copied[stage].arrive_after_copies();
  }
  template <class B>
  static __device__ void hand_on(Shared<B>& shared, int stage, int lane, std::uint32_t parity) {
    while (!__all_sync(0xffffffffu, shared.copied[stage].done_now(parity))) {
    }
    cuda::fence_async_proxy();
    Sync::sync();
    if (lane == 0) shared.full[stage].arrive();
  }
};

/// The copy engine and stores: packed tiles of the backward pass. Between the readers' loads and the engine's next
/// stores is their fence.
struct Bulk : Stores {
  template <class B>
  static __device__ void write(Shared<B>& shared, int stage, int lane, const Part& part) {
    shared.words[stage][lane] = part.word;
    if (lane == 0) {
      shared.full[stage].arrive_expecting(sizeof(shared.pieces[stage]));
      shared.full[stage].load(shared.pieces[stage], part.piece, sizeof(shared.pieces[stage]));
    } else {
      shared.full[stage].arrive();
    }
  }
  template <class B>
  static __device__ void release(Shared<B>& shared, int stage, int) {
    cuda::fence_async_proxy();
    shared.empty[stage].arrive();
  }
};

/// The same with one arrival.
template <class Sync>
struct BulkOneArrives : Bulk {
  static constexpr int kArrivals = 1;
  template <class B>
  static __device__ void write(Shared<B>& shared, int stage, int lane, const Part& part) {
    shared.words[stage][lane] = part.word;
    Sync::sync();
    if (lane != 0) return;
    shared.full[stage].arrive_expecting(sizeof(shared.pieces[stage]));
    shared.full[stage].load(shared.pieces[stage], part.piece, sizeof(shared.pieces[stage]));
  }
};

/// Right, or wrong: one side does its work before it waits.
struct InTurn {
  static constexpr bool kReaderHastens = false, kWriterHastens = false;
};
struct ReaderHastens {
  static constexpr bool kReaderHastens = true, kWriterHastens = false;
};
struct WriterHastens {
  static constexpr bool kReaderHastens = false, kWriterHastens = true;
};

inline __host__ __device__ std::uint32_t word_of(int tile, int lane) {
  return static_cast<std::uint32_t>(tile * 1000 + lane * 7 + 1);
}

/// Warp 0 hands kTiles tiles to the other warps, round a ring of kStages: out [kReaders][kTiles][32].
template <class Way, class B, class Turns>
__global__ void hand_over(const uint4* in, std::uint32_t* out) {
  extern __shared__ char memory[];
  auto& shared = *reinterpret_cast<Shared<B>*>(memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      shared.full[stage].init(Way::kArrivals);
      shared.empty[stage].init(kReaders * Way::kReleases);
      shared.copied[stage].init(32);
    }
    cuda::fence_barrier_init();
  }
  __syncthreads();
  cuda::RingPlace<kStages> place;
  if (warp == 0) {
    for (int tile = 0; tile < kTiles; ++tile) {
      if (!Turns::kWriterHastens) shared.empty[place.stage].wait(place.parity ^ 1u);
      Way::write(shared, place.stage, lane, {in + tile * 32 + lane, word_of(tile, lane)});
      if constexpr (requires { Way::template hand_on<B>(shared, 0, 0, 0u); }) {
        Way::hand_on(shared, place.stage, lane, place.parity);
      }
      if (Turns::kWriterHastens) shared.empty[place.stage].wait(place.parity ^ 1u);
      place.advance();
    }
    return;
  }
  for (int tile = 0; tile < kTiles; ++tile) {
    if (!Turns::kReaderHastens) shared.full[place.stage].wait(place.parity);
    const uint4 piece = shared.pieces[place.stage][31 - lane];  // of another lane
    const std::uint32_t word = shared.words[place.stage][31 - lane];
    if (Turns::kReaderHastens) shared.full[place.stage].wait(place.parity);
    out[((warp - 1) * kTiles + tile) * 32 + lane] = piece.x + piece.y + piece.z + piece.w + word;
    Way::release(shared, place.stage, lane);
    place.advance();
  }
}

/// The way back, through one buffer: warps store, and a thread of warp 0 has the copy engine take all away.
/// out [kTiles][kReaders][32].
template <class Sync, class B, class Turns>
__global__ void hand_back(std::uint32_t* out) {
  __shared__ alignas(128) std::uint32_t words[kReaders * 32];
  __shared__ alignas(16) char barriers[2 * sizeof(B)];
  B& full = reinterpret_cast<B*>(barriers)[0];
  B& empty = reinterpret_cast<B*>(barriers)[1];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    full.init(kReaders);
    empty.init(1);
    cuda::fence_barrier_init();
  }
  __syncthreads();
  std::uint32_t parity = 0;
  for (int tile = 0; tile < kTiles; ++tile, parity ^= 1u) {
    if (warp > 0) {
      if (!Turns::kWriterHastens) empty.wait(parity ^ 1u);
      words[(warp - 1) * 32 + lane] = word_of(tile, lane) + warp;
      if (Turns::kWriterHastens) empty.wait(parity ^ 1u);
      cuda::fence_async_proxy();
      Sync::sync();
      if (lane == 0) full.arrive();
    } else if (lane == 0) {
      if (!Turns::kReaderHastens) full.wait(parity);
      cuda::store_bulk(out + tile * kReaders * 32, cuda::shared_address(words), sizeof(words));
      cuda::wait_bulk_reads();
      if (Turns::kReaderHastens) full.wait(parity);
      empty.arrive();
    }
  }
  if (threadIdx.x == 0) cuda::wait_bulk_stores();
}

class Run {
 public:
  Run() {
    std::vector<std::uint32_t> in(kTiles * 32 * 4);
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint32_t>(i * i + 3);
    input_ = in;
    failed_ |= cudaMalloc(&in_, in.size() * 4) != cudaSuccess || cudaMalloc(&out_, kOut * 4) != cudaSuccess ||
               cudaMemcpy(in_, in.data(), in.size() * 4, cudaMemcpyHostToDevice) != cudaSuccess;
  }
  ~Run() {
    cudaFree(in_);
    cudaFree(out_);
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  template <class Way, class Turns>
  void over(const char* name) {
    both<Turns>(
        name, [&]<class B>(B*) { hand_over<Way, B, Turns><<<1, kThreads, sizeof(Shared<B>)>>>(in_, out_); },
        [&](int reader, int tile, int lane) {
          const std::uint32_t* piece = &input_[static_cast<std::size_t>((tile * 32 + 31 - lane) * 4)];
          return std::pair((reader * kTiles + tile) * 32 + lane,
                           piece[0] + piece[1] + piece[2] + piece[3] + word_of(tile, 31 - lane));
        });
  }
  template <class Sync, class Turns>
  void back(const char* name) {
    both<Turns>(
        name, [&]<class B>(B*) { hand_back<Sync, B, Turns><<<1, kThreads>>>(out_); },
        [](int reader, int tile, int lane) {
          return std::pair((tile * kReaders + reader) * 32 + lane,
                           word_of(tile, lane) + static_cast<std::uint32_t>(reader) + 1);
        });
  }
  template <class Turns>
  void all() {
    over<Stores, Turns>("Stores");
    over<OneArrives<SyncWarp>, Turns>("OneArrives, SyncWarp");
    over<OneArrives<SyncBarrier>, Turns>("OneArrives, SyncBarrier");
    over<OneReleases<SyncWarp>, Turns>("OneReleases, SyncWarp");
    over<OneReleases<SyncBarrier>, Turns>("OneReleases, SyncBarrier");
    over<CopiesAndStores, Turns>("CopiesAndStores");
    over<HandedOn<SyncWarp>, Turns>("HandedOn, SyncWarp");
    over<HandedOn<SyncBarrier>, Turns>("HandedOn, SyncBarrier");
    over<Bulk, Turns>("Bulk");
    over<BulkOneArrives<SyncWarp>, Turns>("BulkOneArrives, SyncWarp");
    over<BulkOneArrives<SyncBarrier>, Turns>("BulkOneArrives, SyncBarrier");
    back<SyncWarp, Turns>("Back, SyncWarp");
    back<SyncBarrier, Turns>("Back, SyncBarrier");
  }
  bool failed() const { return failed_; }

 private:
  static constexpr std::size_t kOut = kReaders * kTiles * 32;

  template <class Turns, class Launch, class Expected>
  void both(const char* name, const Launch& launch, const Expected& expected) {
    one<Turns>(
        name, "Own", [&] { launch(static_cast<Own*>(nullptr)); }, expected);
    one<Turns>(
        name, "Library", [&] { launch(static_cast<Library*>(nullptr)); }, expected);
  }
  template <class Turns, class Launch, class Expected>
  void one(const char* name, const char* barrier, const Launch& launch, const Expected& expected) {
    std::vector<std::uint32_t> out(kOut);
    cudaMemset(out_, 0xff, kOut * 4);
    launch();
    const cudaError_t status = cudaMemcpy(out.data(), out_, kOut * 4, cudaMemcpyDeviceToHost);
    std::size_t wrong = 0;
    for (int reader = 0; reader < kReaders; ++reader) {
      for (int tile = 0; tile < kTiles; ++tile) {
        for (int lane = 0; lane < 32; ++lane) {
          const auto [at, value] = expected(reader, tile, lane);
          wrong += out[static_cast<std::size_t>(at)] != value;
        }
      }
    }
    const bool right = !Turns::kReaderHastens && !Turns::kWriterHastens;
    if (status != cudaSuccess || (right && wrong != 0)) failed_ = true;
    std::printf("%-27s %-8s %s: %zu of %zu words wrong, %s\n", name, barrier,
                right                   ? "in turn"
                : Turns::kReaderHastens ? "reader hastens"
                                        : "writer hastens",
                wrong, kOut, cudaGetErrorString(status));
    std::fflush(stdout);
  }

  std::vector<std::uint32_t> input_;
  uint4* in_ = nullptr;
  std::uint32_t* out_ = nullptr;
  bool failed_ = false;
};

}  // namespace
}  // namespace moba::test

int main(int argc, char** argv) {
  using namespace moba::test;
  Run run;
  if (argc < 2 || std::strcmp(argv[1], "wrong") != 0) {
    run.all<InTurn>();
  } else {
    run.all<ReaderHastens>();
    run.all<WriterHastens>();
  }
  return run.failed() ? 1 : 0;
}
