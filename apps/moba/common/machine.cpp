#include "common/machine.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <string_view>
#include <thread>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "common/version.h"
#include "moba/cpu_info.h"

namespace moba::app {

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
  const char* const wanted = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (wanted == nullptr) return true;
  std::string limit = wanted;
  std::transform(limit.begin(), limit.end(), limit.begin(), [](unsigned char c) { return std::tolower(c); });
  // oneDNN's names of what has no AMX; it ignores a name that it does not know.
  constexpr std::array<std::string_view, 10> kWithout = {"sse41",
                                                         "avx",
                                                         "avx2",
                                                         "avx2_vnni",
                                                         "avx2_vnni_2",
                                                         "avx512_core",
                                                         "avx512_core_vnni",
                                                         "avx512_core_bf16",
                                                         "avx512_core_fp16",
                                                         "avx10_1_512"};
  return std::find(kWithout.begin(), kWithout.end(), limit) == kWithout.end();
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
