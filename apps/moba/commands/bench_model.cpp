// moba bench model: what a model's own attention plan gains over full attention, reading a prompt and writing after it.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "bench/attend_problem.h"
#include "bench/model_speed.h"
#include "bench/timing.h"
#include "common/attention_choice.h"
#include "common/command.h"
#include "common/errors.h"
#include "common/json_file.h"
#include "common/limits.h"
#include "common/machine.h"
#include "common/model_choice.h"
#include "common/output.h"
#include "common/progress.h"
#include "common/text_files.h"
#include "lm/util/files.h"
#include "moba/error.h"

namespace moba::app {
namespace {

struct ModelFlags {
  ModelChoice model;
  PlanFlags plan;
  std::vector<std::string> texts;
  std::vector<std::int64_t> lengths = {16384, 65536};
  std::int64_t new_tokens = 32;
  int repeats = 3;
  bool quick = false;
  std::string json;
};

/// Of one length and one plan.
struct ModelTimes {
  std::vector<double> read_s, token_ms;

  nlohmann::ordered_json json() const {
    const auto [read_min, read_max] = std::minmax_element(read_s.begin(), read_s.end());
    const auto [token_min, token_max] = std::minmax_element(token_ms.begin(), token_ms.end());
    return {{"read_s", median(read_s)},     {"read_s_min", *read_min},    {"read_s_max", *read_max},
            {"token_ms", median(token_ms)}, {"token_ms_min", *token_min}, {"token_ms_max", *token_max}};
  }
};

/// The beginning of the texts, or tokens drawn at random.
std::vector<std::int64_t> make_prompt(const ModelFlags& flags, const lm::Pretrained& loaded, std::int64_t length) {
  std::vector<std::int64_t> tokens;
  if (flags.texts.empty()) {
    torch::manual_seed(20250218);
    const torch::Tensor drawn = torch::randint(0, loaded.tokenizer->vocab_size(), {length}, torch::kInt64);
    tokens.assign(drawn.const_data_ptr<std::int64_t>(), drawn.const_data_ptr<std::int64_t>() + length);
    return tokens;
  }
  std::string all;
  for (const std::string& text : read_texts(flags.texts, loaded.config)) all += text;
  tokens = lm::encode_prompt(*loaded.tokenizer, all);
  if (static_cast<std::int64_t>(tokens.size()) < length) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--text: the files have {} tokens, fewer than the {} of --lengths; give more text",
                            tokens.size(), length));
  }
  tokens.resize(static_cast<std::size_t>(length));
  return tokens;
}

std::string times_line(std::int64_t length, const ModelTimes& full, const ModelTimes& moba) {
  const double full_s = median(full.read_s), moba_s = median(moba.read_s);
  const double full_ms = median(full.token_ms), moba_ms = median(moba.token_ms);
  return fmt::format("  {:>8} {:>12.3f} {:>12.3f} {:>8.2f}x {:>12.2f} {:>12.2f} {:>8.2f}x\n", length, full_s, moba_s,
                     full_s / moba_s, full_ms, moba_ms, full_ms / moba_ms);
}

int run_model(ModelFlags flags) {
  if (!flags.json.empty()) lm::check_output_path(flags.json);
  if (flags.quick) flags.lengths = {4096};
  lm::Pretrained loaded = flags.model.load();
  const torch::NoGradGuard no_gradients;
  const lm::AttentionPlan moba_plan = choose_plan("moba", loaded.config, flags.plan);
  const lm::AttentionPlan full_plan = choose_plan("full", loaded.config, flags.plan);
  const torch::Tensor weights = loaded.model->parameters().front();
  const std::vector<std::int64_t> text =
      make_prompt(flags, loaded, *std::max_element(flags.lengths.begin(), flags.lengths.end()));
  print(fmt::format(
      "{}\n{}, {:.1f} M parameters, {}: {} against full attention in every layer, both by our own kernels\n"
      "only the last token's logits are asked for; medians of {} alternating runs, of {} tokens after each\n\n"
      "  {:>8} {:>12} {:>12} {:>9} {:>12} {:>12} {:>9}\n",
      machine_line(weights.is_cuda()), flags.model.directory().string(),
      static_cast<double>(loaded.config.parameter_count()) / 1e6, c10::toString(weights.scalar_type()),
      moba_plan.summary(), flags.repeats, flags.new_tokens, "tokens", "full, s", "moba, s", "faster", "full, ms/tok",
      "moba, ms/tok", "faster"));

  Progress progress;
  std::int64_t done = 0;
  const auto total = static_cast<std::int64_t>(2 * flags.lengths.size()) * flags.repeats;
  nlohmann::ordered_json json = {{"model", flags.model.directory().string()},
                                 {"plan", moba_plan.summary()},
                                 {"dtype", c10::toString(weights.scalar_type())},
                                 {"device", weights.device().str()},
                                 {"rows", nlohmann::ordered_json::array()}};
  for (const std::int64_t length : flags.lengths) {
    const std::vector<std::int64_t> prompt(text.begin(), text.begin() + length);
    ModelSpeed moba(loaded.model, moba_plan, prompt, flags.new_tokens);
    ModelSpeed full(loaded.model, full_plan, prompt, flags.new_tokens);
    const double tolerance = tolerance_of(weights.scalar_type() == torch::kFloat32 ? "fp32" : "bf16");
    const double error = std::max(moba.verify(tolerance), full.verify(tolerance));
    ModelTimes moba_times, full_times;
    const auto sample = [&](ModelSpeed& speed, ModelTimes& times) {
      progress.show(fmt::format("{} tokens", length), ++done, total);
      times.read_s.push_back(speed.read());
      const std::vector<double> tokens = speed.write();
      times.token_ms.insert(times.token_ms.end(), tokens.begin(), tokens.end());
    };
    for (int i = 0; i < flags.repeats; ++i) {
      sample(moba, moba_times);
      sample(full, full_times);
    }
    progress.clear();
    print(times_line(length, full_times, moba_times));
    json["rows"].push_back({{"length", length},
                            {"full", full_times.json()},
                            {"moba", moba_times.json()},
                            {"read_ratio", median(full_times.read_s) / median(moba_times.read_s)},
                            {"token_ratio", median(full_times.token_ms) / median(moba_times.token_ms)},
                            {"logit_difference", error}});
  }
  json["repeats"] = flags.repeats;
  json["new_tokens"] = flags.new_tokens;
  json["machine"] = describe_machine();
  json["date"] = utc_now();
  write_json(flags.json, json);
  return kSuccess;
}

}  // namespace

void add_bench_model(CLI::App& bench, Action& action) {
  auto flags = std::make_shared<ModelFlags>();
  CLI::App* command = bench.add_subcommand("model", "A model's own plan against full attention: reading and writing");
  const char* group = "Problem";
  command->add_option("--lengths", flags->lengths, "Tokens of the prompt")
      ->delimiter(',')
      ->check(at_least(1))
      ->default_str("16384,65536")
      ->type_name("N,N")
      ->group(group);
  command->add_option("--new-tokens", flags->new_tokens, "Tokens written after each prompt")
      ->check(at_least(1))
      ->capture_default_str()
      ->group(group);
  command->add_option("--text", flags->texts, "Files whose beginning is the prompt (default: random tokens)")
      ->type_name("FILE")
      ->group(group);
  flags->plan.declare(*command);
  flags->model.declare(*command);
  command->add_option("--repeats", flags->repeats, "Readings of each, taken in turns")
      ->check(between(1, 1000))
      ->capture_default_str();
  command->add_flag("--quick", flags->quick, "4096 tokens");
  command->add_option("--json", flags->json, "Write the result to this file")->type_name("OUT");
  command->footer(
      "The last token's logits are first compared with those of a pass over every token's; a difference is exit code\n"
      "1. Full attention over 65536 tokens takes a small CPU about a minute.\n\n"
      "Examples:\n"
      "  moba bench model --threads 2 --text BOOKS… --json model.json\n"
      "  moba bench model --lengths 65536 --repeats 1\n"
      "  moba bench model --model DIR --block-size 512 --top-k 3 --lengths 32768");
  command->callback([flags, &action] { action = [flags] { return run_model(*flags); }; });
}

}  // namespace moba::app
