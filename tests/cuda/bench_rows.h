// The problems that timing programs name, and which of them a command line asks for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>

#include "moba/tensor.h"

namespace moba::test {

/// Which past blocks rows choose.
enum class Choice {
  kRandom,     // one at random from each of `budget` equal ranges
  kFirst,      // all rows the first ones
  kZipf,       // block i about as often as 1 / (i + 1)
  kClustered,  // as kRandom, but the same for 128 neighbours, as trained models nearly do
};

struct BenchRow {
  const char* name;
  std::int64_t tokens, heads, kv_heads, dim, block_size, top_k;
  Choice choice = Choice::kRandom;
  DType dtype = DType::kBFloat16;
};

/// Of attention, forward and backward.
inline constexpr BenchRow kBenchRows[] = {
    {"8K 512,3", 8192, 16, 16, 128, 512, 3},
    {"32K 512,3", 32768, 16, 16, 128, 512, 3},
    {"32K 128,8", 32768, 16, 16, 128, 128, 8},
    {"32K 4096,3 H4", 32768, 4, 4, 128, 4096, 3},
    {"64K d64 64,8", 65536, 4, 4, 64, 64, 8},
    {"32K d64 512,3", 32768, 16, 16, 64, 512, 3},
    {"32K d64 128,8", 32768, 16, 16, 64, 128, 8},
    {"128K 512,3", 131072, 16, 16, 128, 512, 3},
    {"128K 128,8", 131072, 16, 16, 128, 128, 8},
    {"128K 32/8 128,8", 131072, 32, 8, 128, 128, 8},
    {"128K 4096,12", 131072, 16, 16, 128, 4096, 12},
    {"128K 4096,12 H4", 131072, 4, 4, 128, 4096, 12},
    {"512K 128,8", 524288, 16, 16, 128, 128, 8},
    {"32K 128,8 first", 32768, 16, 16, 128, 128, 8, Choice::kFirst},
    {"32K 128,8 Zipf", 32768, 16, 16, 128, 128, 8, Choice::kZipf},
    {"32K 128,8 clustered", 32768, 16, 16, 128, 128, 8, Choice::kClustered},
    {"32K 512,3 first", 32768, 16, 16, 128, 512, 3, Choice::kFirst},
    {"32K 512,3 Zipf", 32768, 16, 16, 128, 512, 3, Choice::kZipf},
    {"32K 512,3 clustered", 32768, 16, 16, 128, 512, 3, Choice::kClustered},
    {"128K 512,3 first", 131072, 16, 16, 128, 512, 3, Choice::kFirst},
    {"128K 512,3 Zipf", 131072, 16, 16, 128, 512, 3, Choice::kZipf},
    {"128K 512,3 clustered", 131072, 16, 16, 128, 512, 3, Choice::kClustered},
    {"32K 128,8 fp16", 32768, 16, 16, 128, 128, 8, Choice::kRandom, DType::kFloat16},
    {"32K 512,3 fp16", 32768, 16, 16, 128, 512, 3, Choice::kRandom, DType::kFloat16},
    {"128K 512,3 fp16", 131072, 16, 16, 128, 512, 3, Choice::kRandom, DType::kFloat16},
};

/// Times the rows that the command line names, in its order; all of them where it names none. The exit code.
template <std::size_t kCount>
int time_rows(int argc, char** argv, const BenchRow (&rows)[kCount], void (*time_row)(const BenchRow&)) {
  try {
    for (int i = 1; i < std::max(argc, 2); ++i) {
      for (const BenchRow& row : rows) {
        if (argc == 1 || std::strcmp(row.name, argv[i]) == 0) time_row(row);
      }
    }
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace moba::test
