// moba bench decode: how much of the sparsity of a choice survives when query heads share keys.
#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "bench/decode_layer.h"
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

struct DecodeFlags {
  DeviceChoice device;
  DecodeCase problem;
  std::int64_t kv_heads = 0;  // of GQA; 0: a quarter of the heads
  int repeats = 7;
  bool quick = false;
  std::string json;
};

/// One way to choose, over one cache.
struct DecodeRow {
  std::string grouping, choice;
  DecodeCase problem;
  ReadCount reads = {};  // of `steps` steps
  std::int64_t steps = 0;
  double error = 0;
  double ms = 0, ms_min = 0, ms_max = 0;
  double full_ms = 0;

  double speedup() const { return full_ms / ms; }
  double per_head(std::int64_t total) const {
    return static_cast<double>(total) / static_cast<double>(steps * problem.sequences * problem.kv_heads);
  }
  double share_of_keys() const { return per_head(reads.keys_read) / static_cast<double>(problem.n); }
  double megabytes() const {
    return 1e-6 * static_cast<double>(reads.key_bytes + reads.representative_bytes) / static_cast<double>(steps);
  }
};

struct Grouping {
  std::string name;
  std::int64_t kv_heads;
};

std::vector<Grouping> groupings(const DecodeFlags& flags) {
  const std::int64_t heads = flags.problem.heads;
  std::vector<Grouping> result = {{"MHA", heads}};
  const std::int64_t grouped = flags.kv_heads > 0 ? flags.kv_heads : heads / 4;
  if (grouped > 1 && grouped < heads) result.push_back({"GQA", grouped});
  if (heads > 1) result.push_back({"MQA", 1});
  return result;
}

/// Every way over one cache, timed in turns.
std::vector<DecodeRow> measure(const DecodeCase& problem, const std::string& grouping, int repeats,
                               const std::function<void()>& sampled) {
  DecodeLayer layer(problem);
  struct Way {
    std::string choice;
    AttentionOptions options;
  };
  std::vector<Way> ways = {{"all keys", problem.full()}, {"per head", problem.options(Share::kHead)}};
  if (problem.kv_heads < problem.heads) ways.push_back({"shared", problem.options(Share::kGroup)});
  std::vector<DecodeRow> rows;
  std::vector<std::vector<double>> times(ways.size());
  for (const Way& way : ways) {
    rows.push_back({.grouping = grouping, .choice = way.choice, .problem = problem});
    rows.back().error = layer.verify(way.options);
    rows.back().reads = layer.reads(way.options);
    rows.back().steps = layer.queries();
  }
  for (int i = 0; i < repeats; ++i) {
    for (std::size_t w = 0; w < ways.size(); ++w) {
      // A sample of at least 20 ms by the time of the first.
      const double first = times[w].empty() ? 1e9 : times[w].front();
      const int calls = std::clamp(static_cast<int>(20.0 / first), 1, 200);
      times[w].push_back(milliseconds(calls, [&](int) { layer.step(ways[w].options); }));
      sampled();
    }
  }
  for (std::size_t w = 0; w < ways.size(); ++w) {
    rows[w].ms = median(times[w]);
    rows[w].ms_min = *std::min_element(times[w].begin(), times[w].end());
    rows[w].ms_max = *std::max_element(times[w].begin(), times[w].end());
    rows[w].full_ms = rows.front().ms;
  }
  return rows;
}

nlohmann::ordered_json to_json(const DecodeRow& row) {
  const DecodeCase& problem = row.problem;
  const bool full = row.choice == "all keys";
  nlohmann::ordered_json json = {{"grouping", row.grouping},
                                 {"choice", row.choice},
                                 {"n", problem.n},
                                 {"sequences", problem.sequences},
                                 {"heads", problem.heads},
                                 {"kv_heads", problem.kv_heads},
                                 {"head_dim", problem.head_dim},
                                 {"block_size", problem.block_size},
                                 {"top_k", problem.top_k},
                                 {"page_size", problem.page_size},
                                 {"dtype", problem.dtype},
                                 {"alike", problem.alike}};
  if (!full) {
    json["blocks_read_per_kv_head"] = row.per_head(row.reads.blocks_read);
    json["blocks_chosen_per_kv_head"] = row.per_head(row.reads.blocks_chosen);
    json["io_ratio"] = row.reads.shared_ratio();
  }
  json["share_of_keys_read"] = row.share_of_keys();
  json["bytes_per_step"] = 1e6 * row.megabytes();
  json["ms"] = row.ms;
  json["ms_min"] = row.ms_min;
  json["ms_max"] = row.ms_max;
  json["ratio_to_all_keys"] = row.speedup();
  json["reference_error"] = row.error;
  return json;
}

std::string row_line(const DecodeRow& row) {
  const bool full = row.choice == "all keys";
  return fmt::format("  {:<4} {:>6}  {:<9} {:>12} {:>9} {:>9.1f}% {:>9.2f} {:>9.3f} {:>8.1f}x\n", row.grouping,
                     fmt::format("{}/{}", row.problem.heads, row.problem.kv_heads), row.choice,
                     full ? "" : fmt::format("{:.1f}", row.per_head(row.reads.blocks_read)),
                     full ? "" : fmt::format("{:.2f}", row.reads.shared_ratio()), 100 * row.share_of_keys(),
                     row.megabytes(), row.ms, row.speedup());
}

int run_decode(DecodeFlags flags) {
  if (!flags.json.empty()) lm::check_output_path(flags.json);
  if (flags.device.apply().is_cuda()) {
    throw Error(ErrorCode::kUnsupported,
                "bench decode is of the CPU backend, and the device is cuda. Add --device cpu.");
  }
  if (flags.quick) flags.problem.n = std::min<std::int64_t>(flags.problem.n, 8192);
  const DecodeCase& problem = flags.problem;
  Progress progress;
  nlohmann::ordered_json json;
  json["rows"] = nlohmann::ordered_json::array();
  print(fmt::format(
      "{}\none decode step of {} sequence{} of {} tokens, head dim {}, {}; MoBA with blocks of {}, top_k {}; pages of "
      "{}\nmedians of {} alternating runs; keys of a key/value head are read once for all its query heads\n\n"
      "  {:<4} {:>6}  {:<9} {:>12} {:>9} {:>10} {:>9} {:>9} {:>9}\n",
      machine_line(false), problem.sequences, problem.sequences == 1 ? "" : "s", problem.n, problem.head_dim,
      problem.dtype, problem.block_size, problem.top_k, problem.page_size, flags.repeats, "", "heads", "choice",
      "blocks read", "/(k*group)", "keys read", "MB", "ms", "faster"));
  std::int64_t samples = 0, total = 0;
  const std::vector<Grouping> wanted = groupings(flags);
  for (const Grouping& grouping : wanted) total += (grouping.kv_heads < problem.heads ? 3 : 2) * flags.repeats;
  for (const Grouping& grouping : wanted) {
    DecodeCase one = problem;
    one.kv_heads = grouping.kv_heads;
    const std::vector<DecodeRow> rows =
        measure(one, grouping.name, flags.repeats, [&] { progress.show(one.text(), ++samples, total); });
    progress.clear();
    for (const DecodeRow& row : rows) {
      print(row_line(row));
      json["rows"].push_back(to_json(row));
    }
  }
  print(
      "\n  blocks read: distinct blocks of one key/value head, its own among them; /(k*group): their number by what "
      "all\n"
      "  its query heads chose, 1 where none is shared; keys read: of all keys; faster: than reading all keys.\n");
  json["repeats"] = flags.repeats;
  json["simd_level"] = simd_level();
  json["machine"] = describe_machine();
  json["date"] = utc_now();
  write_json(flags.json, json);
  return kSuccess;
}

}  // namespace

void add_bench_decode(CLI::App& bench, Action& action) {
  auto flags = std::make_shared<DecodeFlags>();
  CLI::App* command = bench.add_subcommand("decode", "What one decode step reads: MHA, GQA and MQA side by side");
  const char* group = "Problem";
  const CLI::Validator positive = at_least(1);
  DecodeCase& problem = flags->problem;
  const auto number = [&](const char* name, std::int64_t& value, const char* text) {
    command->add_option(name, value, text)->check(positive)->capture_default_str()->group(group);
  };
  number("--n", problem.n, "Tokens of each sequence");
  number("--sequences", problem.sequences, "Sequences of one step");
  number("--heads", problem.heads, "Query heads");
  command->add_option("--kv-heads", flags->kv_heads, "Key and value heads of GQA (default: a quarter)")
      ->check(positive)
      ->group(group);
  command->add_option("--head-dim", problem.head_dim, "Head dimension")
      ->check(between(8, 256))
      ->capture_default_str()
      ->group(group);
  number("--block-size", problem.block_size, "MoBA block size in tokens");
  number("--top-k", problem.top_k, "Blocks a row attends, its own counted");
  number("--page-size", problem.page_size, "Tokens of a page; divides the block size");
  command->add_option("--alike", problem.alike, "How much the queries of a group agree, from 0 (not at all) to 1")
      ->check(CLI::Range(0.0, 1.0).description(""))
      ->capture_default_str()
      ->group(group);
  command->add_option("--dtype", problem.dtype, "fp32, bf16 or fp16")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str()
      ->group(group);
  command->add_option("--repeats", flags->repeats, "Samples of each, taken in turns")
      ->check(between(1, 1000))
      ->capture_default_str();
  command->add_flag("--quick", flags->quick, "At most 8192 tokens");
  command->add_option("--json", flags->json, "Write the result to this file")->type_name("OUT");
  flags->device.declare(*command);
  command->footer(
      "Each query head chooses its own blocks, or the heads of a key/value head choose together (\"shared\").\n"
      "Every answer is compared with the double-precision reference before it is timed; a wrong one is exit code 1.\n\n"
      "Examples:\n"
      "  moba bench decode --device cpu --threads 2 --json decode.json\n"
      "  moba bench decode --device cpu --n 65536 --block-size 256 --top-k 16 --alike 0.5");
  command->callback([flags, &action] {
    const DecodeCase& chosen = flags->problem;
    const auto must_divide = [](const char* flag, std::int64_t part, const char* of, std::int64_t whole) {
      if (part > 0 && whole % part != 0) {
        throw CLI::ValidationError(flag, fmt::format("{} does not divide {} {}", part, of, whole));
      }
    };
    must_divide("--kv-heads", flags->kv_heads, "--heads", chosen.heads);
    must_divide("--page-size", chosen.page_size, "--block-size", chosen.block_size);
    if (flags->kv_heads == 0 && chosen.heads % 4 != 0 && chosen.heads > 4) {
      throw CLI::ValidationError("--heads", fmt::format("{} has no quarter: add --kv-heads", chosen.heads));
    }
    action = [flags] { return run_decode(*flags); };
  });
}

}  // namespace moba::app
