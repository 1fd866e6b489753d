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
/// What to set in the environment for torch to do without AMX.
inline constexpr const char* kWithoutMatrixTiles =
    "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 MKL_ENABLE_INSTRUCTIONS=AVX512_E3";

/// {"cpu", "cores", "threads", "torch_amx"?, "moba", "torch", "compiler"}; "torch_amx" where the processor has AMX.
nlohmann::ordered_json describe_machine();

/// "AMD EPYC, 2 threads", "Intel Xeon, 2 threads, torch without AMX" or "CUDA, beside …": one line for a page.
std::string machine_line(bool cuda);

/// "2026-11-24 10:48 UTC"
std::string utc_now();

}  // namespace moba::app
