// What the timing programs of attention share: problems with made-up choices, and medians of CUDA events.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

#include "cuda/bench_rows.h"
#include "cuda/device.h"

namespace moba::test {

inline __device__ std::uint32_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return static_cast<std::uint32_t>(x >> 32);
}

template <class T>
__global__ void fill_normal_kernel(T* data, std::int64_t count, std::uint64_t seed) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count;
       i += gridDim.x * std::int64_t{blockDim.x}) {
    const float u = (mix(2 * i + seed) + 1.0f) * 0x1p-32f, angle = mix(2 * i + 1 + seed) * 0x1p-32f;
    data[i] = static_cast<T>(sqrtf(-2.0f * logf(fminf(u, 1.0f))) * cospif(2.0f * angle));
  }
}

/// `budget` past blocks of each row and head, ascending; all of them where there are no more than that.
inline __global__ void fill_choice_kernel(std::int32_t* list, std::int64_t rows, std::int64_t heads,
                                          std::int64_t budget, std::int64_t block_size, Choice choice) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < rows * heads;
       i += gridDim.x * std::int64_t{blockDim.x}) {
    const std::int64_t row = i / heads, own = row / block_size;
    const std::int64_t chooser = choice == Choice::kClustered ? row / 128 * heads + i % heads : i;
    std::int64_t next = 0;  // the first block that is not listed yet
    for (std::int64_t slot = 0; slot < budget; ++slot) {
      std::int64_t block = slot < own ? slot : -1;
      if (own > budget && choice == Choice::kZipf) {
        const float share = (static_cast<float>(slot) + mix(i * 64 + slot) * 0x1p-32f) / static_cast<float>(budget);
        block = static_cast<std::int64_t>(powf(static_cast<float>(own + 1), share)) - 1;
        block = min(max(block, next), own - budget + slot);
      } else if (own > budget && choice != Choice::kFirst) {
        const std::int64_t low = slot * own / budget, high = (slot + 1) * own / budget;
        block = low + mix(chooser * 64 + slot) % (high - low);
      }
      next = block + 1;
      list[i * budget + slot] = static_cast<std::int32_t>(block);
    }
  }
}

/// Device memory, all bytes 0xff at first: a NaN in every float type.
class Memory {
 public:
  explicit Memory(std::int64_t bytes) : bytes_(bytes) {
    must(cudaMalloc(&data_, static_cast<std::size_t>(bytes)), "cudaMalloc");
    must(cudaMemset(data_, 0xff, static_cast<std::size_t>(bytes)), "cudaMemset");
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* get() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::int64_t bytes_;
  void* data_ = nullptr;
};

inline __global__ void sum_bits_kernel(const std::uint16_t* data, std::int64_t count, unsigned long long* sum) {
  unsigned long long mine = 0;
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count;
       i += gridDim.x * std::int64_t{blockDim.x}) {
    mine += static_cast<unsigned long long>(mix(static_cast<std::uint64_t>(i) * 65536 + data[i]));
  }
  atomicAdd(sum, mine);
}

/// A sum of a tensor's bits, which tells whether two builds agree.
inline unsigned bits_of(const Memory& memory) {
  unsigned long long *sum = nullptr, host = 0;
  must(cudaMalloc(&sum, 8), "cudaMalloc");
  must(cudaMemset(sum, 0, 8), "cudaMemset");
  sum_bits_kernel<<<1024, 256>>>(static_cast<const std::uint16_t*>(memory.get()), memory.bytes() / 2, sum);
  must(cudaMemcpy(&host, sum, 8, cudaMemcpyDeviceToHost), "cudaMemcpy");
  cudaFree(sum);
  return static_cast<unsigned>(host ^ host >> 32);
}

inline void fill_normal(cudaStream_t stream, const Memory& memory, DType dtype, std::uint64_t seed) {
  const std::int64_t count = memory.bytes() / 2;
  if (dtype == DType::kBFloat16) {
    fill_normal_kernel<<<1024, 256, 0, stream>>>(static_cast<__nv_bfloat16*>(memory.get()), count, seed);
  } else {
    fill_normal_kernel<<<1024, 256, 0, stream>>>(static_cast<__half*>(memory.get()), count, seed);
  }
}

/// Works until the machine runs at the clock that such work leaves it.
inline void heat(cudaStream_t stream, const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(300)) {
    work();
    must(cudaStreamSynchronize(stream), "timed work");
  }
}

/// The median of `runs` runs after one that does not count.
inline float median_ms(cudaStream_t stream, int runs, const std::function<void()>& work) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int run = 0; run <= runs; ++run) {
    cudaEventRecord(begin, stream);
    work();
    cudaEventRecord(end, stream);
    must(cudaEventSynchronize(end), "timed work");
    float ms = 0.0f;
    cudaEventElapsedTime(&ms, begin, end);
    if (run > 0) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace moba::test
