// What this machine can do at most, measured in the same run as what is compared with it.
#pragma once

#include <torch/torch.h>

namespace moba::app {

struct Ceiling {
  double gemm_gflops = 0;  // torch's matrix product in the dtype of the inputs: 2048^3 on a CPU, 8192^3 on a GPU
  double read_gbs = 0;     // CPU: reading memory, all threads. GPU: a copy, its reads and writes both counted
};

/// `dtype` as the command line names it: "fp32", "bf16", "fp16".
Ceiling measure_ceiling(const char* dtype, torch::Device device);

/// Bytes of the last-level cache as the operating system tells them; 32 MiB where it does not.
long long last_level_cache();

}  // namespace moba::app
