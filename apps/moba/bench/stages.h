// One call taken apart into its verbs, each timed alone on the core's backend of the device.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench/attend_problem.h"
#include "bench/ceiling.h"

namespace moba::app {

struct Stage {
  std::string verb;  // "pool", "select", "attend", "attend_backward"
  double ms = 0;     // median
  double gflop = 0;  // useful: products with keys that a row sees, five of them in the backward
  double gbyte = 0;  // inputs read and outputs written once; in decode, the keys that rows see

  double gflops() const { return gflop / ms * 1e3; }
  double gbs() const { return gbyte / ms * 1e3; }
  /// Time over the least that the ceilings allow.
  double over_floor(const Ceiling& ceiling) const {
    return std::min(ceiling.gemm_gflops / gflops(), ceiling.read_gbs / gbs());
  }
};

/// The verbs of a case on tensors of its own. In decode every call has other queries, as in AttendProblem. On CUDA the
/// native kernels must take the case: Error (kUnsupported) otherwise. A partial result of a row and a block is written
/// and read there, and counted.
std::vector<Stage> measure_stages(const AttendCase& problem, torch::Device device, int repeats);

std::string stage_table(const std::vector<Stage>& stages, const Ceiling& ceiling);
nlohmann::ordered_json to_json(const std::vector<Stage>& stages, const Ceiling& ceiling);

}  // namespace moba::app
