#include "common/machine.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <chrono>
#include <ctime>
#include <fstream>
#include <thread>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "common/version.h"

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

nlohmann::ordered_json describe_machine() {
  nlohmann::ordered_json json;
  json["cpu"] = cpu_name();
  json["cores"] = std::thread::hardware_concurrency();
  json["threads"] = at::get_num_threads();
  json["moba"] = moba_version();
  json["torch"] = torch_version();
  json["compiler"] = compiler_version();
  return json;
}

std::string machine_line(bool cuda) {
  const int threads = at::get_num_threads();
  std::string line = fmt::format("{}, {} thread{}", cpu_name(), threads, threads == 1 ? "" : "s");
  return cuda ? "CUDA, beside " + line : line;
}

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  return fmt::format("{:%Y-%m-%d %H:%M} UTC", fmt::gmtime(now));
}

}  // namespace moba::app
