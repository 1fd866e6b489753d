#include "common/machine.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <initializer_list>
#include <string_view>
#include <thread>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "common/version.h"
#include "moba/cpu_info.h"

namespace moba::app {

namespace {

bool environment_is_one_of(const char* variable, std::initializer_list<std::string_view> values) {
  const char* const value = std::getenv(variable);
  return value != nullptr && std::find(values.begin(), values.end(), value) != values.end();
}

bool libmoba_uses_matrix_tiles() {
  return simd_level() == std::string_view("AMX-BF16");
}

}  // namespace

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    // x86 says "model name", some others "Hardware" or "cpu".
    for (const char* key : {"model name", "Hardware", "cpu\t"}) {
      const std::size_t colon = line.find(':');
      if (line.starts_with(key) && colon != std::string::npos && colon + 2 < line.size()) return line.substr(colon + 2);
    }
  }
  return "unknown CPU";
}

bool torch_uses_matrix_tiles() {
  if (!has_matrix_tiles()) return false;
  // What has no AMX, by the names of each; they ignore a name that they do not know.
  const bool without =
      environment_is_one_of("ONEDNN_MAX_CPU_ISA",
                            {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
                             "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"}) &&
      environment_is_one_of("MKL_ENABLE_INSTRUCTIONS",
                            {"SSE4_2", "AVX", "AVX2", "AVX512", "AVX512_E1", "AVX512_E2", "AVX512_E3"});
  return !without;
}

std::string matrix_tiles_note() {
  if (!has_matrix_tiles()) return "";
  constexpr const char* kTorchWithout = "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 MKL_ENABLE_INSTRUCTIONS=AVX512_E3";
  constexpr const char* kOursWithout = "--simd-level AVX-512-BF16";
  if (torch_uses_matrix_tiles() && libmoba_uses_matrix_tiles()) {
    return fmt::format(
        "torch and libmoba both use it: like with like, but the goals are of processors without it.\n"
        "Without it: {} for torch,\nbench's {} for libmoba",
        kTorchWithout, kOursWithout);
  }
  if (torch_uses_matrix_tiles()) {
    return fmt::format(
        "torch uses it and libmoba does not: the goals do not apply.\nWith {} in the environment they do",
        kTorchWithout);
  }
  if (libmoba_uses_matrix_tiles()) {
    return fmt::format(
        "libmoba uses it, the environment keeps torch off it: not like with like.\nWith bench's {} the goals apply",
        kOursWithout);
  }
  return "neither torch nor libmoba uses it here: the goals apply";
}

nlohmann::ordered_json describe_machine() {
  nlohmann::ordered_json json;
  json["cpu"] = cpu_name();
  json["cores"] = std::thread::hardware_concurrency();
  json["threads"] = at::get_num_threads();
  if (has_matrix_tiles()) {
    json["torch_amx"] = torch_uses_matrix_tiles();
    json["moba_amx"] = libmoba_uses_matrix_tiles();
  }
  json["moba"] = moba_version();
  json["torch"] = torch_version();
  json["compiler"] = compiler_version();
  return json;
}

std::string machine_line(bool cuda) {
  const int threads = at::get_num_threads();
  std::string line = fmt::format("{}, {} thread{}", cpu_name(), threads, threads == 1 ? "" : "s");
  if (cuda) return "CUDA, beside " + line;
  if (!has_matrix_tiles()) return line;
  const bool theirs = torch_uses_matrix_tiles(), ours = libmoba_uses_matrix_tiles();
  if (theirs == ours) return line + (ours ? ", both with AMX" : ", both without AMX");
  return line + (ours ? ", only libmoba with AMX" : ", only torch with AMX");
}

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  return fmt::format("{:%Y-%m-%d %H:%M} UTC", fmt::gmtime(now));
}

}  // namespace moba::app
