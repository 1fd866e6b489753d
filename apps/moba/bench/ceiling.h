// What this machine can do at most, measured in the same run as what is compared with it.
#pragma once

namespace moba::app {

struct Ceiling {
  double gemm_gflops = 0;  // torch's matrix product of 2048^3 in the dtype of the inputs
  double read_gbs = 0;     // reading memory, all threads
};

/// `dtype` as the command line names it: "fp32", "bf16", "fp16".
Ceiling measure_ceiling(const char* dtype);

/// Bytes of the last-level cache as the operating system tells them; 32 MiB where it does not.
long long last_level_cache();

}  // namespace moba::app
