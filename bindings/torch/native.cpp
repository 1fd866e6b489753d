#include "native.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "cuda_device.h"

namespace moba::torch_ops {
namespace {

constexpr const char* kLibrary = "libmoba_cuda.so";
constexpr int kHopper = 9;  // compute capability 9.0
constexpr std::array<std::int64_t, 2> kNativeHeadDims = {64, 128};
constexpr std::int64_t kMinNativeBlock = 16, kMaxNativeBudget = 63;

// Where the library may lie: a path that the user names; beside this code, in a build or in an installation; the
// system's search path.
std::vector<std::string> places() {
  std::vector<std::string> result;
  if (const char* named = std::getenv("MOBA_CUDA_LIBRARY")) return {named};
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&native_backend), &info) != 0 && info.dli_fname != nullptr) {
    const std::filesystem::path folder = std::filesystem::absolute(info.dli_fname).parent_path();
    result.push_back((folder / kLibrary).string());
    result.push_back((folder.parent_path() / "lib" / kLibrary).string());
  }
  result.emplace_back(kLibrary);
  return result;
}

struct Library {
  const Backend* backend = nullptr;
  std::string problem;
};

Library load() {
  std::string tried;
  for (const std::string& place : places()) {
    std::error_code code;
    if (place.find('/') != std::string::npos && !std::filesystem::exists(place, code)) {
      tried += (tried.empty() ? "" : ", ") + place;
      continue;
    }
    void* const handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      if (place == kLibrary) break;
      return {nullptr, place + " cannot be loaded: " + dlerror()};
    }
    using GetBackend = const Backend* (*)();
    const auto get_backend = reinterpret_cast<GetBackend>(dlsym(handle, "moba_cuda_backend"));
    if (get_backend == nullptr) return {nullptr, place + " is not libmoba's: it has no moba_cuda_backend"};
    return {get_backend(), ""};
  }
  return {nullptr, std::string(kLibrary) + " was not found (tried " + tried +
                       "); build it with `make cuda`, or name it in MOBA_CUDA_LIBRARY"};
}

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

}  // namespace

const Backend* native_backend() {
  return library().backend;
}

std::optional<std::string> native_library_problem() {
  if (library().backend != nullptr) return std::nullopt;
  return library().problem;
}

std::optional<std::string> native_device_problem(int device) {
  if (compute_capability(device) != kHopper) {
    return "CUDA device " + std::to_string(device) + " is not of the Hopper generation (compute capability 9.0)";
  }
  return native_library_problem();
}

std::optional<std::string> native_limit(const NativeProblem& problem) {
  const auto native_dim = [](std::int64_t dim) {
    return std::find(kNativeHeadDims.begin(), kNativeHeadDims.end(), dim) != kNativeHeadDims.end();
  };
  if (problem.dtype != at::kBFloat16 && problem.dtype != at::kHalf) {
    return std::string("the dtype ") + c10::toString(problem.dtype) + " (native: bfloat16, float16)";
  }
  if (!native_dim(problem.head_dim) || (problem.value_dim != 0 && problem.value_dim != problem.head_dim)) {
    return "head_dim " + std::to_string(problem.head_dim) +
           (problem.value_dim == 0 ? std::string() : " with value_dim " + std::to_string(problem.value_dim)) +
           " (native: 64 or 128, both the same)";
  }
  if (problem.block_size < kMinNativeBlock) {
    return "block_size " + std::to_string(problem.block_size) + " (native: at least 16)";
  }
  if (problem.budget > kMaxNativeBudget) {
    return "top_k " + std::to_string(problem.budget + 1) + " (native: at most 64)";
  }
  if (!problem.sums_logits) return "share_score sum_prob or max (native: sum_logit)";
  if (!problem.rounded_means) return "representatives in float32 (native: those in the dtype of k)";
  return std::nullopt;
}

}  // namespace moba::torch_ops
