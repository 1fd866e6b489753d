// The device a model runs on. CUDA kernels are loaded when the program runs, not linked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <torch/torch.h>

namespace moba::lm {

/// "cpu", "cuda", or "auto" (CUDA where there is a usable GPU, else the CPU). Loads libtorch_cuda.so on the first call
/// that may need it, which must come before anything else asks torch about CUDA. Error, naming what is missing and the
/// remedy, when "cuda" is asked and cannot be had, and for any other word.
torch::Device resolve_device(const std::string& name);

/// Why there is no CUDA device, or nothing when there is one; for reports. Loads as resolve_device("auto") does.
std::optional<std::string> cuda_problem();

/// The GPU's name ("NVIDIA H100 80GB HBM3"), from the driver; empty when unknown.
std::string gpu_name(torch::Device device);

/// Peak dense bf16 TFLOP/s of a GPU by its name, from the vendor's data sheets; 0 when unknown.
double peak_bf16_tflops(const std::string& gpu);

struct MemoryUse {
  std::int64_t now = 0;   // bytes
  std::int64_t peak = 0;  // the most since the start
};

/// The process's resident memory for the CPU; what torch's allocator holds for tensors on CUDA.
MemoryUse memory_use(torch::Device device);

/// Waits until everything queued on the device is done; returns at once for the CPU.
void synchronize(torch::Device device);

}  // namespace moba::lm
