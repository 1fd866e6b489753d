#include "lm/util/device.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <utility>

#include "moba/error.h"

namespace moba::lm {
namespace {

// The folder of libtorch_cpu.so, where pip and the build leave libtorch_cuda.so too.
std::filesystem::path torch_library_folder() {
  Dl_info info{};
  // A function defined inside libtorch_cpu.so; its address tells the file.
  const auto function = reinterpret_cast<const void*>(&at::globalContext);
  if (::dladdr(function, &info) == 0 || !info.dli_fname) return {};
  return std::filesystem::path(info.dli_fname).parent_path();
}

// Loads torch's CUDA kernels, which register themselves; returns what went wrong.
std::optional<std::string> load_cuda_library() {
  constexpr const char* kLibrary = "libtorch_cuda.so";
  if (::dlopen(kLibrary, RTLD_NOW | RTLD_GLOBAL)) return std::nullopt;  // by RPATH or LD_LIBRARY_PATH
  const std::filesystem::path beside = torch_library_folder() / kLibrary;
  std::error_code code;
  if (!std::filesystem::exists(beside, code)) {
    return fmt::format(
        "{} was not found (neither in the library path nor at {}); this torch was installed without CUDA", kLibrary,
        beside.string());
  }
  if (::dlopen(beside.c_str(), RTLD_NOW | RTLD_GLOBAL)) return std::nullopt;
  return fmt::format("{} cannot be loaded: {}", beside.string(), ::dlerror());
}

std::optional<std::string> find_cuda_problem() {
  // Cheap and telling: without the driver nothing else can work.
  void* driver = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (!driver) return "the NVIDIA driver is not installed (libcuda.so.1 was not found)";
  if (const std::optional<std::string> problem = load_cuda_library()) return problem;
  try {
    if (!torch::cuda::is_available()) return "the NVIDIA driver sees no GPU";
    at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
  } catch (const std::exception& error) {
    const std::string text = error.what();
    return "torch cannot start CUDA: " + text.substr(0, text.find('\n'));
  }
  return std::nullopt;
}

std::int64_t status_kib(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key + ":", 0) == 0) return std::stoll(line.substr(key.size() + 1));
  }
  return 0;
}

}  // namespace

std::optional<std::string> cuda_problem() {
  static std::mutex mutex;
  static std::optional<std::optional<std::string>> known;
  const std::lock_guard lock(mutex);
  if (!known) known = find_cuda_problem();
  return *known;
}

torch::Device resolve_device(const std::string& name) {
  if (name == "cpu") return torch::kCPU;
  if (name != "auto" && name != "cuda")
    throw Error(ErrorCode::kInvalidArgument, fmt::format("device = '{}': must be auto, cpu or cuda", name));
  const std::optional<std::string> problem = cuda_problem();
  if (!problem) return {torch::kCUDA, 0};
  if (name == "auto") return torch::kCPU;
  throw Error(ErrorCode::kUnsupported, fmt::format("device = 'cuda': {}; install the driver and a torch with CUDA, or "
                                                   "use the device cpu",
                                                   *problem));
}

std::string gpu_name(torch::Device device) {
  if (!device.is_cuda()) return {};
  void* driver = ::dlopen("libcuda.so.1", RTLD_NOW);
  if (!driver) return {};
  using Init = int (*)(unsigned);
  using GetName = int (*)(char*, int, int);
  const auto init = reinterpret_cast<Init>(::dlsym(driver, "cuInit"));
  const auto get_name = reinterpret_cast<GetName>(::dlsym(driver, "cuDeviceGetName"));
  std::array<char, 256> name{};
  const int index = std::max<int>(0, device.index());
  if (!init || !get_name || init(0) != 0 || get_name(name.data(), static_cast<int>(name.size()) - 1, index) != 0)
    return {};
  return name.data();
}

double peak_bf16_tflops(const std::string& gpu) {
  // Dense, without sparsity. Longer names first: the first that is contained counts.
  constexpr std::array<std::pair<const char*, double>, 12> kPeaks = {{{"H100 PCIe", 756},
                                                                      {"H100 NVL", 835},
                                                                      {"H100", 989},
                                                                      {"H200", 989},
                                                                      {"GH200", 989},
                                                                      {"B200", 2250},
                                                                      {"A100", 312},
                                                                      {"A10G", 70},
                                                                      {"L40S", 362},
                                                                      {"L4", 121},
                                                                      {"RTX 4090", 165},
                                                                      {"RTX 3090", 71}}};
  for (const auto& [name, tflops] : kPeaks) {
    if (gpu.find(name) != std::string::npos) return tflops;
  }
  return 0;
}

MemoryUse memory_use(torch::Device device) {
  if (device.is_cuda()) {
    const auto stats = c10::getDeviceAllocator(c10::DeviceType::CUDA)->getDeviceStats(device.index());
    constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return {stats.reserved_bytes[kAll].current, stats.reserved_bytes[kAll].peak};
  }
  return {status_kib("VmRSS") * 1024, status_kib("VmHWM") * 1024};
}

void synchronize(torch::Device device) {
  if (!device.is_cuda()) return;
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeDevice(device.index());
}

}  // namespace moba::lm
