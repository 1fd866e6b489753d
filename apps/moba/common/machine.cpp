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

nlohmann::ordered_json describe_machine() {
  nlohmann::ordered_json json;
  json["cpu"] = cpu_name();
  json["cores"] = std::thread::hardware_concurrency();
  json["threads"] = at::get_num_threads();
  if (has_matrix_tiles()) json["torch_amx"] = torch_uses_matrix_tiles();
  json["moba"] = moba_version();
  json["torch"] = torch_version();
  json["compiler"] = compiler_version();
  return json;
}

std::string machine_line(bool cuda) {
  const int threads = at::get_num_threads();
  std::string line = fmt::format("{}, {} thread{}", cpu_name(), threads, threads == 1 ? "" : "s");
  if (cuda) return "CUDA, beside " + line;
  return has_matrix_tiles() ? line + (torch_uses_matrix_tiles() ? ", torch with AMX" : ", torch without AMX") : line;
}

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  return fmt::format("{:%Y-%m-%d %H:%M} UTC", fmt::gmtime(now));
}

}  // namespace moba::app
