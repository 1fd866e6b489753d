// What this machine is, for results that somebody else reads.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace moba::app {

/// "AMD EPYC 9V74", from the operating system; "unknown CPU" where it does not say.
std::string cpu_name();

/// {"cpu", "cores", "threads", "gpu"?, "moba", "torch", "compiler"}
nlohmann::ordered_json describe_machine();

/// "AMD EPYC, 2 threads" or "NVIDIA H100 80GB HBM3": one line for a page.
std::string machine_line(bool cuda);

/// "2026-11-24 10:48 UTC"
std::string utc_now();

}  // namespace moba::app
