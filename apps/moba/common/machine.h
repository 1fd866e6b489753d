// What this machine is, for results that somebody else reads.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace moba::app {

/// "AMD EPYC 9V74", from the operating system; "unknown CPU" where it does not say.
std::string cpu_name();

/// Whether torch's matrix products may run on AMX: the processor has it, and the environment does not hold both
/// libraries whose kernels they are below it, oneDNN (linear layers, matmul) and MKL (inside dense attention).
bool torch_uses_matrix_tiles();

/// What ratios of ours to torch mean on a processor with AMX, and how to take it from torch, from ours at the SIMD
/// level in use, or from both; empty where the processor has none.
std::string matrix_tiles_note();

/// {"cpu", "cores", "threads", "torch_amx"?, "moba_amx"?, "moba", "torch", "compiler"}; "…_amx", whether each uses it,
/// where the processor has AMX.
nlohmann::ordered_json describe_machine();

/// "AMD EPYC, 2 threads", "Intel Xeon, 2 threads, both with AMX" or "CUDA, beside …": one line for a page.
std::string machine_line(bool cuda);

/// "2026-11-24 10:48 UTC"
std::string utc_now();

}  // namespace moba::app
