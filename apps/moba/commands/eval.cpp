// moba eval: the loss of a model on text.
#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

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
#include "lm/eval/loss.h"
#include "lm/util/files.h"

namespace moba::app {
namespace {

struct EvalFlags {
  ModelChoice model;
  PlanFlags plan;
  std::vector<std::string> texts;
  std::int64_t length = 4096;
  std::string attention = "model";
  std::int64_t bins = 16;
  std::optional<std::int64_t> trailing;
  std::string json;
};

nlohmann::ordered_json to_json(const lm::LossResult& result, const EvalFlags& flags, const std::string& plan,
                               double seconds) {
  nlohmann::ordered_json json;
  json["loss"] = result.loss;
  json["tokens"] = result.tokens;
  json["attention"] = flags.attention;
  json["length"] = flags.length;
  json["windows"] = result.windows;
  json["by_position"] = result.by_position;
  json["trailing_loss"] = result.trailing_loss;
  json["trailing"] = result.trailing;
  json["plan"] = plan;
  json["texts"] = flags.texts;
  json["seconds"] = seconds;
  json["machine"] = describe_machine();
  return json;
}

int run_eval(const EvalFlags& flags) {
  if (!flags.json.empty()) lm::check_output_path(flags.json);
  Progress progress;
  lm::Pretrained loaded = flags.model.load();
  const lm::AttentionPlan plan = choose_plan(flags.attention, loaded.config, flags.plan);
  std::vector<std::vector<std::int64_t>> documents;
  for (const std::string& text : read_texts(flags.texts, loaded.config)) {
    documents.push_back(loaded.tokenizer->encode(text));
  }

  // At least one window in four parts is trailing text, at most the last 1024 tokens.
  const std::int64_t trailing = flags.trailing.value_or(std::clamp<std::int64_t>(flags.length / 4, 1, 1024));
  const auto started = std::chrono::steady_clock::now();
  const lm::LossResult result =
      lm::evaluate_loss(loaded.model, plan, documents, flags.length, std::min(flags.bins, flags.length - 1), trailing,
                        [&](std::int64_t done, std::int64_t total) { progress.show("reading text", done, total); });
  progress.clear();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();

  write_json(flags.json, to_json(result, flags, plan.summary(), seconds));
  print(
      fmt::format("loss           {:.4f} nats per token\n"
                  "trailing loss  {:.4f} (last {} tokens of a window)\n"
                  "tokens         {} predicted, in {} windows of {}\n"
                  "attention      {} ({})\n"
                  "time           {:.1f} s\n",
                  result.loss, result.trailing_loss, result.trailing, result.tokens, result.windows, flags.length,
                  flags.attention, plan.summary(), seconds));
  return kSuccess;
}

}  // namespace

void add_eval(CLI::App& program, Action& action) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command = program.add_subcommand("eval", "Loss on text: mean, by position, at the end of the context");
  command->add_option("--text", flags->texts, "Text files; each is cut into windows of its own")
      ->required()
      ->type_name("FILE")
      ->group("Text");
  command->add_option("--length", flags->length, "Tokens of a window; every whole window is read")
      ->check(at_least(2))
      ->capture_default_str()
      ->group("Text");
  command->add_option("--json", flags->json, "Write the result to this file")->type_name("OUT")->group("Output");
  command->add_option("--bins", flags->bins, "Parts of the window that by_position tells apart")
      ->check(between(1, 4096))
      ->capture_default_str()
      ->group("Output");
  command
      ->add_option("--trailing", flags->trailing,
                   "Tokens of trailing_loss (default: a quarter of a window, at most 1024)")
      ->check(at_least(1))
      ->group("Output");
  flags->model.declare(*command);
  command->add_option("--attention", flags->attention, "model: the plan of the checkpoint; full or moba in all layers")
      ->check(attention_names())
      ->capture_default_str()
      ->group("Attention");
  flags->plan.declare(*command);
  command->footer(
      "Examples:\n"
      "  moba eval --text book.txt --length 16384 --json loss.json\n"
      "  moba eval --model DIR --text a.txt b.txt --attention full");
  command->callback([flags, &action] {
    if (flags->trailing && *flags->trailing >= flags->length) {
      throw CLI::ValidationError("--trailing", "must be below --length");
    }
    action = [flags] { return run_eval(*flags); };
  });
}

}  // namespace moba::app
