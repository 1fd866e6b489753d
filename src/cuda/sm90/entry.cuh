// A score with its column, in registers and in shared memory.
#pragma once

#include <cstdint>

namespace moba::cuda {

/// Better is a higher score, or a lower column at the same score.
struct Entry {
  float score;
  std::int32_t column;
};
__device__ __forceinline__ bool better(const Entry& a, const Entry& b) {
  return a.score > b.score || (a.score == b.score && a.column < b.column);
}

__device__ __forceinline__ Entry load_entry(std::uint32_t address) {
  Entry entry;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=f"(entry.score), "=r"(entry.column) : "r"(address) : "memory");
  return entry;
}
__device__ __forceinline__ void store_entry(std::uint32_t address, const Entry& entry) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "f"(entry.score), "r"(entry.column) : "memory");
}
__device__ __forceinline__ std::int32_t load_word(std::uint32_t address) {
  std::int32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}
__device__ __forceinline__ void store_word(std::uint32_t address, std::int32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

/// Where `score` is above the threshold: writes the entry at `end` and moves it. Predicated, never a branch.
template <std::uint32_t kStride>
__device__ __forceinline__ void push_above(float score, float threshold, std::int32_t column, std::uint32_t& end) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "setp.gt.f32 p, %1, %2;\n"
      "@p st.shared.v2.b32 [%0], {%1, %3};\n"
      "@p add.u32 %0, %0, %4;\n}\n"
      : "+r"(end)
      : "f"(score), "f"(threshold), "r"(column), "n"(kStride)
      : "memory");
}

}  // namespace moba::cuda
