// moba doctor: what this machine has, what each backend can do on it, and what is in the way.
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "common/command.h"
#include "common/errors.h"
#include "common/limits.h"
#include "common/machine.h"
#include "common/model_choice.h"
#include "common/output.h"
#include "common/version.h"
#include "lm/checkpoint/pretrained.h"
#include "lm/util/device.h"
#include "moba/backend.h"
#include "moba/cpu_info.h"
#include "moba_torch/self_check.h"

namespace moba::app {
namespace {

/// Facts as they are found; problems, each with its remedy; whether one of them means that something is broken.
struct Findings {
  std::string facts;
  std::vector<std::string> problems;
  bool broken = false;

  void fact(const std::string& name, const std::string& value) { facts += fmt::format("  {:<16} {}\n", name, value); }
  void section(const std::string& title) { facts += fmt::format("{}{}\n", facts.empty() ? "" : "\n", title); }
};

/// Of the CPU's features, those that matter here.
std::string cpu_features() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos || !(line.starts_with("flags") || line.starts_with("Features"))) continue;
    std::istringstream words(line.substr(colon + 1));
    std::string found;
    for (std::string word; words >> word;) {
      for (const char* known : {"avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni",
                                "amx_bf16", "amx_tile", "asimd", "asimdhp", "bf16", "sve", "sve2"}) {
        if (word == known) found += (found.empty() ? "" : " ") + word;
      }
    }
    return found.empty() ? "none of AVX2, AVX-512, NEON, SVE" : found;
  }
  return "unknown";
}

std::string dtypes_of(const Backend& backend) {
  std::string names;
  for (DType dtype : {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    if (backend.supports(dtype)) names += (names.empty() ? "" : ", ") + std::string(name_of(dtype));
  }
  return names;
}

/// A small problem through the library's own self-check, so that a build that miscomputes is found here.
void check_arithmetic(torch::Device device, Findings& findings) {
  for (torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16, torch::kFloat16}) {
    torch::manual_seed(0);
    const auto draw = [&](std::int64_t heads) { return torch::randn({96, heads, 64}).to(device, dtype); };
    const torch::Tensor q = draw(4), k = draw(2), v = draw(2);
    const torch::Tensor offsets = torch::tensor({0, 60, 96}, torch::kInt32).to(device);
    const SelfCheckReport report =
        torch_ops::self_check(q, k, v, torch_ops::SequenceBatch::self(offsets, 60), {.block_size = 16});
    findings.fact(c10::toString(dtype), report.passed ? "self-check passed" : "self-check FAILED: " + report.summary());
    if (report.passed) continue;
    findings.broken = true;
    findings.problems.push_back(
        fmt::format("{} on {}: the self-check failed on this machine; build again from scratch, "
                    "and report it with this output if it stays",
                    c10::toString(dtype), device.str()));
  }
}

void look_at_cpu(Findings& findings) {
  findings.section("CPU");
  findings.fact("name", cpu_name());
  findings.fact("features", cpu_features());
  findings.fact("SIMD level", fmt::format("{} (built in: {})", simd_level(), fmt::join(compiled_simd_levels(), ", ")));
  std::istringstream amx(matrix_tiles_note());
  std::string name = "AMX";
  for (std::string line; std::getline(amx, line); name.clear()) findings.fact(name, line);
  findings.fact("cores",
                fmt::format("{} seen, {} threads used", std::thread::hardware_concurrency(), at::get_num_threads()));
  findings.section("backends");
  for (const Backend* backend : {&reference_backend(), &cpu_backend()}) {
    findings.fact(backend->name(),
                  fmt::format("CPU; {}; head dims {} to {}", dtypes_of(*backend), kMinHeadDim, kMaxHeadDim));
  }
  findings.fact("portable", fmt::format("CUDA, through torch; float32, bfloat16, float16; head dims {} to {}",
                                        kMinHeadDim, kMaxHeadDim));
  // What a backend lacks goes to the portable one, with a warning.
  findings.fact("choice options",
                "reference, cpu, portable: forced previous and sink blocks; choice per head, group or layer by "
                "sum_logit, sum_prob or max; representatives input or float32");
  findings.fact("",
                "native CUDA kernels lack: sum_prob, max, representatives float32 (these run the portable backend)");
  findings.section("CPU attention");
  check_arithmetic(torch::kCPU, findings);
}

void look_at_gpu(Findings& findings) {
  findings.section("GPU");
  if (const auto problem = lm::cuda_problem()) {
    findings.fact("CUDA", "not used: " + *problem);
    // A machine without a GPU is as it should be; a GPU that cannot be used is a problem.
    if (std::ifstream("/dev/nvidiactl")) {
      findings.broken = true;
      findings.problems.push_back("there is an NVIDIA device, but torch cannot use it: " + *problem);
    }
    return;
  }
  for (int i = 0; i < static_cast<int>(torch::cuda::device_count()); ++i) {
    const torch::Device device(torch::kCUDA, static_cast<torch::DeviceIndex>(i));
    findings.fact(device.str(), lm::gpu_name(device));
    check_arithmetic(device, findings);
  }
}

void look_at_model(Findings& findings) {
  findings.section("model");
  const std::filesystem::path place = find_shipped_model();
  if (place.empty()) {
    findings.fact("shipped model", "not found");
    std::string looked;
    for (const auto& candidate : shipped_model_places()) looked += " " + candidate.string();
    findings.problems.push_back("the model that comes with moba is in none of" + looked +
                                "; name one with --model DIR, or run moba from its build folder");
    return;
  }
  findings.fact("shipped model", place.string());
  try {
    const lm::Pretrained loaded = lm::load_pretrained(place, torch::kCPU, torch::kFloat32);
    findings.fact("size", fmt::format("{:.2f} M parameters, context {}",
                                      static_cast<double>(loaded.config.parameter_count()) / 1e6,
                                      loaded.config.max_position_embeddings));
    findings.fact("attention", loaded.config.plan.summary());
  } catch (const std::exception& error) {
    findings.broken = true;
    findings.problems.push_back(
        fmt::format("the shipped model cannot be read: {}; restore it with `git checkout`", error.what()));
  }
}

int run_doctor(const DeviceChoice& device) {
  if (device.threads > 0) at::set_num_threads(static_cast<int>(device.threads));
  // CUDA is looked for before anything runs on the CPU: once torch has been asked about CUDA without its library, it
  // says "none" for the rest of the process.
  (void)lm::cuda_problem();
  Findings findings;
  findings.section("program");
  findings.fact("moba", moba_version());
  findings.fact("torch", torch_version());
  findings.fact("compiler", compiler_version());
  look_at_cpu(findings);
  look_at_gpu(findings);
  look_at_model(findings);
  std::string text = findings.facts;
  text += findings.problems.empty() ? "\nno problems\n" : "\nproblems\n";
  for (const std::string& problem : findings.problems) text += "  - " + problem + "\n";
  print(text);
  if (findings.broken) print_note("moba: doctor: something is broken; see the problems above");
  return findings.broken ? kFailure : kSuccess;
}

}  // namespace

void add_doctor(CLI::App& program, Action& action) {
  auto device = std::make_shared<DeviceChoice>();
  CLI::App* command =
      program.add_subcommand("doctor", "What this machine has, what runs on it, and what is in the way");
  command->add_option("--threads", device->threads, "Threads of the CPU (default: all cores)")->check(between(1, 4096));
  command->footer("Exit code 1 only when something is broken.");
  command->callback([device, &action] { action = [device] { return run_doctor(*device); }; });
}

}  // namespace moba::app
