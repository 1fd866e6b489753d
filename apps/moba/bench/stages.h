// One call taken apart into its verbs, each timed alone on the CPU backend.
#pragma once

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
};

/// The verbs of a case on tensors of its own. In decode every call has other queries, as in AttendProblem.
std::vector<Stage> measure_stages(const AttendCase& problem, int repeats);

std::string stage_table(const std::vector<Stage>& stages, const Ceiling& ceiling);
nlohmann::ordered_json to_json(const std::vector<Stage>& stages, const Ceiling& ceiling);

}  // namespace moba::app
