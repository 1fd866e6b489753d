// What this machine is, for results that somebody else reads.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace moba::app {

/// "AMD EPYC 9V74", from the operating system; "unknown CPU" where it does not say.
std::string cpu_name();

/// Whether torch's matrix products run on AMX: the processor has it, and ONEDNN_MAX_CPU_ISA does not hold oneDNN, whose
/// kernels they are, below it.
bool torch_uses_matrix_tiles();

/// {"cpu", "cores", "threads", "torch_amx"?, "moba", "torch", "compiler"}; "torch_amx" where the processor has AMX.
nlohmann::ordered_json describe_machine();

/// "AMD EPYC, 2 threads", "Intel Xeon, 2 threads, torch without AMX" or "CUDA, beside …": one line for a page.
std::string machine_line(bool cuda);

/// "2026-11-24 10:48 UTC"
std::string utc_now();

}  // namespace moba::app
