// moba bench: speed against torch's dense attention, measured in the same run, of answers that were checked first.
#include <algorithm>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "bench/attend_problem.h"
#include "bench/ceiling.h"
#include "bench/speed_curve.h"
#include "bench/speed_table.h"
#include "bench/stages.h"
#include "bench/timing.h"
#include "common/command.h"
#include "common/errors.h"
#include "common/json_file.h"
#include "common/limits.h"
#include "common/machine.h"
#include "common/model_choice.h"
#include "common/output.h"
#include "common/progress.h"
#include "lm/util/files.h"
#include "moba/cpu_info.h"
#include "moba/error.h"

namespace moba::app {
namespace {

struct BenchFlags {
  DeviceChoice device;
  std::vector<std::int64_t> n, head_dim;
  std::int64_t heads = 8, kv_heads = 0;  // 0: as many as heads
  std::int64_t block_size = 512, top_k = 3;
  std::string dtype = "bf16", kind = "moba";
  GateFlags gate;
  std::vector<std::string> passes;
  int repeats = 5;
  bool quick = false, stages = false, goals = false;
  std::string simd_level;
  std::string json, svg, curve;
};

struct BenchRow {
  SpeedGoal goal;  // without figures where none was asked for
  double error = 0;
  double ms = 0, baseline_ms = 0;  // medians
  double portable_ms = 0;          // of the portable CUDA backend; 0: not timed
  double ms_min = 0, ms_max = 0;   // of ours
  double baseline_ms_min = 0, baseline_ms_max = 0;
  std::vector<Stage> stages = {};
  double ratio() const { return baseline_ms / ms; }
};

std::vector<SpeedGoal> cases_of(const BenchFlags& flags, bool cuda) {
  if (flags.goals) {
    std::vector<SpeedGoal> goals = cuda ? cuda_speed_goals() : speed_goals();
    for (SpeedGoal& goal : goals) {
      if (goal.simd_level.empty()) goal.simd_level = flags.simd_level;
    }
    return goals;
  }
  const auto make = [&](const std::string& pass, std::int64_t n, std::int64_t head_dim) {
    return AttendCase{.pass = pass,
                      .n = n,
                      .heads = flags.heads,
                      .kv_heads = flags.kv_heads == 0 ? flags.heads : flags.kv_heads,
                      .head_dim = head_dim,
                      .block_size = flags.block_size,
                      .top_k = flags.top_k,
                      .dtype = flags.dtype,
                      .kind = flags.kind,
                      .gate = flags.gate};
  };
  const bool chosen = !flags.n.empty() || !flags.passes.empty();
  const std::vector<std::int64_t> dims = !flags.head_dim.empty() ? flags.head_dim
                                         : flags.quick           ? std::vector<std::int64_t>{64}
                                                                 : std::vector<std::int64_t>{64, 128};
  std::vector<std::string> passes = flags.passes;
  if (passes.empty())
    passes =
        chosen || flags.quick ? std::vector<std::string>{"fwd"} : std::vector<std::string>{"fwd", "fwdbwd", "decode"};
  std::vector<SpeedGoal> cases;
  for (const std::string& pass : passes) {
    std::vector<std::int64_t> lengths = flags.n;
    if (lengths.empty()) {
      // Dense attention forward and backward over 32K takes minutes on a small CPU.
      if (pass == "fwd") lengths = {8192, 16384, 32768};
      if (pass == "bwd" || pass == "fwdbwd") lengths = {8192};
      if (pass == "decode") lengths = {32768};
      if (flags.quick) lengths = {8192};
    }
    for (std::int64_t n : lengths) {
      for (std::int64_t dim : dims) cases.push_back({make(pass, n, dim), 0, 0, flags.simd_level});
    }
  }
  return cases;
}

/// Whether the portable backend is a second baseline. Beyond 128K tokens a call takes seconds.
bool times_portable(const AttendCase& problem, torch::Device device) {
  constexpr std::int64_t kLongest = 131072;
  return device.is_cuda() && problem.kind == "moba" && problem.pass != "decode" && problem.n <= kLongest;
}

/// On CUDA, torch's fastest dense attention of 16-bit tensors is cuDNN's, which it does not choose by itself.
const char* choose_baseline(const std::string& dtype, torch::Device device) {
  if (!device.is_cuda() || dtype == "fp32") return "torch_sdpa";
  at::globalContext().setSDPUseFlash(false);
  at::globalContext().setSDPUseMemEfficient(false);
  at::globalContext().setSDPUseMath(false);
  at::globalContext().setSDPUseCuDNN(true);
  return "torch_cudnn";
}

void use_level(const std::string& name) {
  limit_simd_level(name.empty() ? nullptr : name.c_str());
}

/// Checks, warms up, then takes turns, so that a machine that grows slower or busier meets both alike. `sampled` is
/// called after each turn.
template <class Sampled>
BenchRow measure(const SpeedGoal& goal, torch::Device device, int repeats, const Sampled& sampled) {
  use_level(goal.simd_level);
  const AttendProblem work(goal.problem, device);
  BenchRow row{.goal = goal, .error = work.verify()};
  const auto wait = [&] { work.wait(); };
  const auto run_moba = [&](int) { work.run_moba(); };
  const auto run_dense = [&](int) { work.run_dense(); };
  work.run_moba();
  const double moba_ms = queued_milliseconds(1, run_moba, wait), dense_ms = queued_milliseconds(1, run_dense, wait);
  // A GPU's clock follows the power that the last tenths of a second took, and dense attention takes most: each side is
  // timed after as much of itself.
  const bool settles = device.is_cuda();
  constexpr double kSettleMs = 250.0;
  // A sample of some length, so that one interruption matters little.
  const double sample_ms = settles ? 100.0 : 20.0;
  const auto calls_in = [](double ms, double of_one) {
    return std::clamp(static_cast<int>(ms / std::max(of_one, 1e-3)), 1, 2000);
  };
  const auto sample = [&](double of_one, const auto& run) {
    // A call of a second settles in its first part.
    if (settles && of_one < 4 * kSettleMs) queued_milliseconds(calls_in(kSettleMs, of_one), run, wait);
    return device_milliseconds(settles, calls_in(sample_ms, of_one), run, wait);
  };
  std::vector<double> ours, dense;
  for (int i = 0; i < repeats; ++i) {
    ours.push_back(sample(moba_ms, run_moba));
    dense.push_back(sample(settles ? dense_ms : moba_ms, run_dense));
    sampled();
  }
  if (times_portable(goal.problem, device)) {
    work.run_portable();
    const auto run_portable = [&](int) { work.run_portable(); };
    row.portable_ms = sample(queued_milliseconds(1, run_portable, wait), run_portable);
  }
  row.ms = median(ours);
  row.baseline_ms = median(dense);
  row.ms_min = *std::min_element(ours.begin(), ours.end());
  row.ms_max = *std::max_element(ours.begin(), ours.end());
  row.baseline_ms_min = *std::min_element(dense.begin(), dense.end());
  row.baseline_ms_max = *std::max_element(dense.begin(), dense.end());
  return row;
}

nlohmann::ordered_json to_json(const BenchRow& row, const char* baseline, const Ceiling& ceiling) {
  const AttendCase& problem = row.goal.problem;
  nlohmann::ordered_json json = {{"pass", problem.pass},
                                 {"n", problem.n},
                                 {"heads", problem.heads},
                                 {"kv_heads", problem.kv_heads},
                                 {"head_dim", problem.head_dim},
                                 {"block_size", problem.block_size},
                                 {"top_k", problem.top_k},
                                 {"dtype", problem.dtype},
                                 {"kind", problem.kind},
                                 {"ms", row.ms},
                                 {"baseline", baseline},
                                 {"baseline_ms", row.baseline_ms},
                                 {"ratio", row.ratio()},
                                 {"ms_min", row.ms_min},
                                 {"ms_max", row.ms_max},
                                 {"baseline_ms_min", row.baseline_ms_min},
                                 {"baseline_ms_max", row.baseline_ms_max},
                                 {"reference_error", row.error}};
  if (problem.gate.any()) {
    json["force_previous"] = problem.gate.force_previous;
    json["sink_blocks"] = problem.gate.sink_blocks;
    json["share"] = problem.gate.share;
    json["share_score"] = problem.gate.share_score;
    json["representative_dtype"] = problem.gate.representative_dtype;
  }
  if (row.portable_ms > 0) {
    json["portable_ms"] = row.portable_ms;
    json["portable_ratio"] = row.portable_ms / row.ms;
  }
  if (!row.goal.simd_level.empty()) json["simd_level"] = row.goal.simd_level;
  if (row.goal.at_least > 0) {
    json["at_least"] = row.goal.at_least;
    json["aim"] = row.goal.aim;
  }
  if (!row.stages.empty()) json["stages"] = to_json(row.stages, ceiling);
  return json;
}

/// A decode step on a GPU takes hundredths of a millisecond.
std::string ms_text(double ms) {
  return fmt::format("{:.{}f}", ms, ms < 1 ? 3 : 2);
}

std::string row_line(const BenchRow& row) {
  const AttendCase& problem = row.goal.problem;
  const bool full = problem.kind == "full";
  std::string line =
      fmt::format("  {:<7} {:>6}  {:>5}  {:>4} {:>4}  {:>4}  {:<5} {:>10} {:>10} {:>7.2f}x", problem.pass, problem.n,
                  fmt::format("{}/{}", problem.heads, problem.kv_heads), problem.head_dim,
                  full ? "full" : std::to_string(problem.block_size), full ? "" : std::to_string(problem.top_k),
                  problem.dtype, ms_text(row.ms), ms_text(row.baseline_ms), row.ratio());
  if (row.portable_ms > 0) {
    line += fmt::format("  portable {} ms, {:.1f}x", ms_text(row.portable_ms), row.portable_ms / row.ms);
  }
  if (row.goal.at_least > 0) {
    line += fmt::format("  {} {:g}x", row.ratio() >= row.goal.at_least ? "meets" : "MISSES", row.goal.at_least);
  }
  if (problem.gate.any()) line += " " + problem.gate.command_line();
  if (!row.goal.simd_level.empty()) line += "  with " + row.goal.simd_level;
  return line + "\n";
}

int run_attend(const BenchFlags& flags) {
  for (const std::string* path : {&flags.json, &flags.svg, &flags.curve}) {
    if (!path->empty()) lm::check_output_path(*path);
  }
  const torch::Device device = flags.device.apply();
  if (device.is_cuda() && !flags.simd_level.empty()) {
    throw Error(ErrorCode::kUnsupported,
                "--simd-level is of the CPU backend, and the device is cuda. Add --device cpu.");
  }
  use_level(flags.simd_level);
  const char* const baseline = choose_baseline(flags.dtype, device);
  const std::vector<SpeedGoal> cases = cases_of(flags, device.is_cuda());
  Progress progress;
  nlohmann::ordered_json json;
  json["rows"] = nlohmann::ordered_json::array();
  print(fmt::format(
      "{}\nmedians of {} alternating runs{}; ratio to torch's scaled_dot_product_attention{} over all keys\n\n"
      "  {:<7} {:>6}  {:>5}  {:>4} {:>4}  {:>4}  {:<5} {:>10} {:>10} {:>8}\n",
      machine_line(device.is_cuda()), flags.repeats, device.is_cuda() ? ", each after 0.25 s of itself" : "",
      device.is_cuda() ? " (cuDNN for 16 bits)" : "", "pass", "n", "heads", "d", "B", "k", "dtype", "ms", "torch ms",
      "ratio"));
  if (device.is_cpu() && has_matrix_tiles()) {
    std::istringstream note("This processor has AMX; " + matrix_tiles_note() + ".");
    for (std::string line; std::getline(note, line);) print("  " + line + "\n");
  }
  Ceiling ceiling;
  std::string ceiling_dtype;
  std::vector<SpeedBar> bars;
  std::vector<CurvePoint> points;
  json["device"] = device.str();
  json["repeats"] = flags.repeats;
  json["simd_level"] = simd_level();
  json["machine"] = describe_machine();
  // After each row, so that a run that is cut short leaves what it measured.
  const auto write = [&] {
    json["date"] = utc_now();
    write_json(flags.json, json);
    const std::string line = machine_line(device.is_cuda()) + ", " + utc_now();
    if (!flags.svg.empty()) lm::write_file_atomically(flags.svg, speed_table_svg(bars, line));
    const std::string curve = flags.curve.empty() ? "" : speed_curve_svg(points, line);
    if (!curve.empty()) lm::write_file_atomically(flags.curve, curve);
    return flags.curve.empty() || !curve.empty();
  };
  bool has_curve = flags.curve.empty();
  std::int64_t samples = 0;
  const auto total = static_cast<std::int64_t>(cases.size()) * flags.repeats;
  for (const SpeedGoal& goal : cases) {
    BenchRow row = measure(goal, device, flags.repeats, [&] { progress.show(goal.problem.text(), ++samples, total); });
    if (flags.stages) {
      if (ceiling_dtype != goal.problem.dtype) ceiling = measure_ceiling(goal.problem.dtype.c_str(), device);
      ceiling_dtype = goal.problem.dtype;
      row.stages = measure_stages(goal.problem, device, flags.repeats);
      json["gemm_gflops"] = ceiling.gemm_gflops;
      json["read_gbs"] = ceiling.read_gbs;
    }
    progress.clear();
    print(row_line(row));
    if (flags.stages) print(stage_table(row.stages, ceiling));
    json["rows"].push_back(to_json(row, baseline, ceiling));
    bars.push_back({goal.name(), goal.at_least, goal.aim, row.ratio()});
    points.push_back({goal.series(), goal.problem.n, row.ms, row.baseline_ms, row.portable_ms});
    has_curve = write();
  }
  use_level(flags.simd_level);
  if (flags.stages) {
    print(fmt::format("\n  matrix rate {:.0f} GFLOP/s (torch, {}), memory rate {:.1f} GB/s, both of this run\n",
                      ceiling.gemm_gflops, ceiling_dtype, ceiling.read_gbs));
  }
  if (!has_curve) {
    throw Error(ErrorCode::kInvalidArgument,
                "--curve " + flags.curve +
                    ": no problem was measured at two lengths, so there is no curve. Name several: --n 8192,32768.");
  }
  return kSuccess;
}

void add_attend(CLI::App& bench, Action& action) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = bench.add_subcommand("attend", "One layer of MoBA attention against dense attention");
  const char* group = "Problem";
  const CLI::Validator positive = at_least(1);
  command->add_option("--n", flags->n, "Tokens (default: 8192,16384,32768 forward; fewer for the rest)")
      ->delimiter(',')
      ->check(positive)
      ->type_name("N,N")
      ->group(group);
  command->add_option("--pass", flags->passes, "One or several of fwd, bwd, fwdbwd, decode")
      ->delimiter(',')
      ->check(CLI::IsMember({"fwd", "bwd", "fwdbwd", "decode"}))
      ->type_name("NAME,NAME")
      ->group(group);
  command->add_option("--heads", flags->heads, "Query heads")->check(positive)->capture_default_str()->group(group);
  command->add_option("--kv-heads", flags->kv_heads, "Key and value heads (default: as many)")
      ->check(positive)
      ->group(group);
  command->add_option("--head-dim", flags->head_dim, "Head dimensions (default: 64,128)")
      ->delimiter(',')
      ->check(between(8, 256))
      ->type_name("D,D")
      ->group(group);
  command->add_option("--block-size", flags->block_size, "MoBA block size in tokens")
      ->check(positive)
      ->capture_default_str()
      ->group(group);
  command->add_option("--top-k", flags->top_k, "Blocks a row attends, its own counted")
      ->check(positive)
      ->capture_default_str()
      ->group(group);
  command->add_option("--dtype", flags->dtype, "fp32, bf16 or fp16")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str()
      ->group(group);
  command->add_option("--kind", flags->kind, "Our attention: moba, or full")
      ->check(CLI::IsMember({"moba", "full"}))
      ->capture_default_str()
      ->group(group);
  flags->gate.declare(*command, group);
  command->add_option("--simd-level", flags->simd_level, "Best SIMD level that ours may use on a CPU")
      ->check(CLI::IsMember(compiled_simd_levels()))
      ->group(group);
  command->add_flag("--goals", flags->goals, "The cases and ratios that this project asks of itself; minutes");
  command->add_flag("--stages", flags->stages, "Time each verb too, against this machine's matrix and read rates");
  command->add_option("--repeats", flags->repeats, "Samples of each, taken in turns")
      ->check(between(1, 1000))
      ->capture_default_str();
  command->add_flag("--quick", flags->quick, "One short problem unless others are named");
  command->add_option("--json", flags->json, "Write the result to this file")->type_name("OUT");
  command->add_option("--svg", flags->svg, "Write the ratios as a picture to this file")->type_name("OUT");
  command->add_option("--curve", flags->curve, "Write the times over the lengths as a picture to this file")
      ->type_name("OUT");
  flags->device.declare(*command);
  command->footer(
      "Every answer is compared with the double-precision reference on sampled rows and heads before it is timed;\n"
      "a wrong one is exit code 1.\n\n"
      "Examples:\n"
      "  moba bench attend --device cpu --json bench.json\n"
      "  moba bench attend --device cpu --goals --stages --threads 2 --svg speed.svg\n"
      "  moba bench attend --n 65536 --head-dim 128 --block-size 4096 --top-k 12 --threads 2");
  command->callback([flags, &action] {
    if (flags->kv_heads != 0 && flags->heads % flags->kv_heads != 0) {
      throw CLI::ValidationError("--kv-heads",
                                 fmt::format("{} does not divide --heads {}", flags->kv_heads, flags->heads));
    }
    action = [flags] { return run_attend(*flags); };
  });
}

}  // namespace

void add_bench(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand("bench", "Speed against torch's dense attention");
  command->require_subcommand(1);
  add_attend(*command, action);
  add_bench_decode(*command, action);
  add_bench_model(*command, action);
}

}  // namespace moba::app
