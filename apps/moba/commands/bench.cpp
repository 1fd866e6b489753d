// moba bench: speed against torch's dense attention, measured in the same run, of answers that were checked first.
#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "bench/attend_problem.h"
#include "common/command.h"
#include "common/errors.h"
#include "common/json_file.h"
#include "common/limits.h"
#include "common/machine.h"
#include "common/model_choice.h"
#include "common/output.h"
#include "common/progress.h"
#include "lm/util/files.h"

namespace moba::app {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchFlags {
  DeviceChoice device;
  std::vector<std::int64_t> n, head_dim;
  std::int64_t heads = 8, kv_heads = 0;  // 0: as many as heads
  std::int64_t block_size = 512, top_k = 3;
  std::string dtype = "bf16";
  std::vector<std::string> passes;
  int repeats = 5;
  bool quick = false;
  std::string json;
};

struct BenchRow {
  AttendCase problem;
  double error = 0;
  double ms = 0, baseline_ms = 0;  // medians
  double ms_min = 0, ms_max = 0;   // of ours
  double baseline_ms_min = 0, baseline_ms_max = 0;
  double ratio() const { return baseline_ms / ms; }
};

std::vector<AttendCase> cases_of(const BenchFlags& flags) {
  const auto make = [&](const std::string& pass, std::int64_t n, std::int64_t head_dim) {
    return AttendCase{.pass = pass,
                      .n = n,
                      .heads = flags.heads,
                      .kv_heads = flags.kv_heads == 0 ? flags.heads : flags.kv_heads,
                      .head_dim = head_dim,
                      .block_size = flags.block_size,
                      .top_k = flags.top_k,
                      .dtype = flags.dtype};
  };
  const bool chosen = !flags.n.empty() || !flags.passes.empty();
  const std::vector<std::int64_t> dims = !flags.head_dim.empty() ? flags.head_dim
                                         : flags.quick           ? std::vector<std::int64_t>{64}
                                                                 : std::vector<std::int64_t>{64, 128};
  std::vector<std::string> passes = flags.passes;
  if (passes.empty())
    passes =
        chosen || flags.quick ? std::vector<std::string>{"fwd"} : std::vector<std::string>{"fwd", "fwdbwd", "decode"};
  std::vector<AttendCase> cases;
  for (const std::string& pass : passes) {
    std::vector<std::int64_t> lengths = flags.n;
    if (lengths.empty()) {
      // Dense attention forward and backward over 32K takes minutes on a small CPU.
      if (pass == "fwd") lengths = {8192, 16384, 32768};
      if (pass == "fwdbwd") lengths = {8192};
      if (pass == "decode") lengths = {32768};
      if (flags.quick) lengths = {8192};
    }
    for (std::int64_t n : lengths) {
      for (std::int64_t dim : dims) cases.push_back(make(pass, n, dim));
    }
  }
  return cases;
}

template <class Work>
double milliseconds(int calls, const Work& work) {
  const Clock::time_point started = Clock::now();
  for (int i = 0; i < calls; ++i) work();
  return std::chrono::duration<double, std::milli>(Clock::now() - started).count() / calls;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Checks, warms up, then takes turns, so that a machine that grows slower or busier meets both alike. `sampled` is
/// called after each turn.
template <class Sampled>
BenchRow measure(const AttendCase& problem, torch::Device device, int repeats, const Sampled& sampled) {
  const AttendProblem work(problem, device);
  BenchRow row{.problem = problem, .error = work.verify()};
  const double warm = milliseconds(1, [&] { work.run_moba(); });
  work.run_dense();
  // A sample of at least 20 ms, so that the clock's grain and one interruption matter little.
  const int calls = std::clamp(static_cast<int>(20.0 / std::max(warm, 1e-3)), 1, 200);
  std::vector<double> ours, dense;
  for (int i = 0; i < repeats; ++i) {
    ours.push_back(milliseconds(calls, [&] { work.run_moba(); }));
    dense.push_back(milliseconds(calls, [&] { work.run_dense(); }));
    sampled();
  }
  row.ms = median(ours);
  row.baseline_ms = median(dense);
  row.ms_min = *std::min_element(ours.begin(), ours.end());
  row.ms_max = *std::max_element(ours.begin(), ours.end());
  row.baseline_ms_min = *std::min_element(dense.begin(), dense.end());
  row.baseline_ms_max = *std::max_element(dense.begin(), dense.end());
  return row;
}

nlohmann::ordered_json to_json(const BenchRow& row) {
  const AttendCase& problem = row.problem;
  return {{"pass", problem.pass},
          {"n", problem.n},
          {"heads", problem.heads},
          {"kv_heads", problem.kv_heads},
          {"head_dim", problem.head_dim},
          {"block_size", problem.block_size},
          {"top_k", problem.top_k},
          {"dtype", problem.dtype},
          {"ms", row.ms},
          {"baseline", "torch_sdpa"},
          {"baseline_ms", row.baseline_ms},
          {"ratio", row.ratio()},
          {"ms_min", row.ms_min},
          {"ms_max", row.ms_max},
          {"baseline_ms_min", row.baseline_ms_min},
          {"baseline_ms_max", row.baseline_ms_max},
          {"reference_error", row.error}};
}

int run_attend(const BenchFlags& flags) {
  if (!flags.json.empty()) lm::check_output_path(flags.json);
  const torch::Device device = flags.device.apply();
  const std::vector<AttendCase> cases = cases_of(flags);
  Progress progress;
  nlohmann::ordered_json json;
  json["rows"] = nlohmann::ordered_json::array();
  print(
      fmt::format("{}\nmedians of {} alternating runs; ratio to torch's scaled_dot_product_attention over all keys\n\n"
                  "  {:<7} {:>6}  {:>5}  {:>4} {:>4}  {:>4}  {:<5} {:>10} {:>10} {:>8}\n",
                  machine_line(device.is_cuda()), flags.repeats, "pass", "n", "heads", "d", "B", "k", "dtype", "ms",
                  "torch ms", "ratio"));
  std::int64_t samples = 0;
  const auto total = static_cast<std::int64_t>(cases.size()) * flags.repeats;
  for (const AttendCase& problem : cases) {
    const BenchRow row =
        measure(problem, device, flags.repeats, [&] { progress.show(problem.text(), ++samples, total); });
    progress.clear();
    const AttendCase& done = row.problem;
    print(fmt::format("  {:<7} {:>6}  {:>5}  {:>4} {:>4}  {:>4}  {:<5} {:>10.2f} {:>10.2f} {:>7.2f}x\n", done.pass,
                      done.n, fmt::format("{}/{}", done.heads, done.kv_heads), done.head_dim, done.block_size,
                      done.top_k, done.dtype, row.ms, row.baseline_ms, row.ratio()));
    json["rows"].push_back(to_json(row));
  }
  json["device"] = device.str();
  json["repeats"] = flags.repeats;
  json["machine"] = describe_machine();
  json["date"] = utc_now();
  write_json(flags.json, json);
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
  command->add_option("--pass", flags->passes, "One or several of fwd, fwdbwd, decode")
      ->delimiter(',')
      ->check(CLI::IsMember({"fwd", "fwdbwd", "decode"}))
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
  command->add_option("--repeats", flags->repeats, "Samples of each, taken in turns")
      ->check(between(1, 1000))
      ->capture_default_str();
  command->add_flag("--quick", flags->quick, "One short problem unless others are named");
  command->add_option("--json", flags->json, "Write the result to this file")->type_name("OUT");
  flags->device.declare(*command);
  command->footer(
      "Every answer is compared with the double-precision reference on sampled rows and heads before it is timed;\n"
      "a wrong one is exit code 1.\n\n"
      "Examples:\n"
      "  moba bench attend --device cpu --json bench.json\n"
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
}

}  // namespace moba::app
