// moba needle: hides facts in long text and asks for them.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

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
#include "lm/eval/needle.h"
#include "lm/util/files.h"
#include "report/needle_report.h"

namespace moba::app {
namespace {

struct NeedleFlags {
  ModelChoice model;
  PlanFlags plan;
  std::vector<std::string> texts;
  lm::NeedleOptions options;
  std::vector<std::string> attentions = {"full", "moba"};
  std::optional<std::int64_t> full_up_to;
  std::string json, html, png;
};

/// The lengths an attention reads: full attention only those up to --full-up-to.
std::vector<std::int64_t> lengths_of(const NeedleFlags& flags, const std::string& attention) {
  std::vector<std::int64_t> lengths = flags.options.lengths;
  if (attention == "full" && flags.full_up_to) {
    std::erase_if(lengths, [&](std::int64_t length) { return length > *flags.full_up_to; });
  }
  return lengths;
}

/// Keeps the first of equal values.
template <class T>
void remove_repeats(std::vector<T>& values) {
  std::vector<T> kept;
  for (const T& value : values) {
    if (std::find(kept.begin(), kept.end(), value) == kept.end()) kept.push_back(value);
  }
  values = kept;
}

/// A word as a shell would need it typed.
std::string shell_word(const std::string& word) {
  const bool plain = !word.empty() && word.find_first_not_of(
                                          "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                          "0123456789_-+=./,:@%") == std::string::npos;
  if (plain) return word;
  std::string quoted = "'";
  for (char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

/// The command line that makes these results again.
std::string command_line(const NeedleFlags& flags) {
  std::string line = "moba needle";
  if (!flags.model.model.empty()) line += " --model " + shell_word(flags.model.model);
  line += " --text";
  for (const std::string& text : flags.texts) line += " " + shell_word(text);
  std::string lengths;
  for (std::int64_t length : flags.options.lengths) lengths += (lengths.empty() ? "" : ",") + std::to_string(length);
  line += fmt::format(" --lengths {} --depths {} --needles {} --attention {}", lengths, flags.options.depths,
                      flags.options.needles, fmt::join(flags.attentions, ","));
  if (flags.full_up_to) line += fmt::format(" --full-up-to {}", *flags.full_up_to);
  if (flags.plan.block_size) line += fmt::format(" --block-size {}", *flags.plan.block_size);
  if (flags.plan.top_k) line += fmt::format(" --top-k {}", *flags.plan.top_k);
  if (flags.plan.last_n_full) line += fmt::format(" --last-n-full {}", *flags.plan.last_n_full);
  line += flags.plan.gate.command_line();
  if (flags.options.distractors != 3) line += fmt::format(" --distractors {}", flags.options.distractors);
  if (flags.model.dtype != "auto") line += " --dtype " + flags.model.dtype;
  if (flags.model.device.device != "auto") line += " --device " + flags.model.device.device;
  if (flags.model.device.threads > 0) line += fmt::format(" --threads {}", flags.model.device.threads);
  if (flags.options.seed != 0) line += fmt::format(" --seed {}", flags.options.seed);
  return line;
}

/// Results, one attention after the other, all over the same prompts.
void run_attentions(const NeedleFlags& flags, lm::Pretrained& loaded, NeedleReport& report) {
  std::vector<lm::AttentionPlan> plans;
  for (const std::string& attention : flags.attentions) {
    plans.push_back(choose_plan(attention, loaded.config, flags.plan));
    report.attention_plans +=
        fmt::format("{}{}: {}", report.attention_plans.empty() ? "" : "; ", attention, plans.back().summary());
  }
  const std::vector<std::string> texts = read_texts(flags.texts, loaded.config);
  Progress progress;
  for (std::size_t i = 0; i < plans.size(); ++i) {
    lm::NeedleOptions options = flags.options;
    options.lengths = lengths_of(flags, flags.attentions[i]);
    std::vector<lm::NeedleResult> results =
        lm::run_needle(loaded.model, *loaded.tokenizer, plans[i], flags.attentions[i], texts, options,
                       [&](const lm::NeedleProgress& at) {
                         progress.show(fmt::format("{} attention, {} tokens", at.attention, with_commas(at.length)),
                                       at.done, at.total);
                       });
    report.results.insert(report.results.end(), results.begin(), results.end());
  }
}

int run_needle_command(const NeedleFlags& flags) {
  for (const std::string& file : {flags.json, flags.html, flags.png}) {
    if (!file.empty()) lm::check_output_path(file);
  }
  lm::Pretrained loaded = flags.model.load();
  const std::int64_t longest = *std::max_element(flags.options.lengths.begin(), flags.options.lengths.end());
  if (longest > loaded.config.max_position_embeddings) {
    print_note(fmt::format("moba: note: --lengths {} is beyond the {} tokens the model was made for", longest,
                           loaded.config.max_position_embeddings));
  }
  NeedleReport report{.model = flags.model.directory().string(),
                      .attention_plans = "",
                      .texts = flags.texts,
                      .options = flags.options,
                      .attentions = flags.attentions,
                      .results = {},
                      .command = command_line(flags),
                      .machine = machine_line(loaded.model->parameters().front().is_cuda()),
                      .date = utc_now(),
                      .machine_json = describe_machine()};
  run_attentions(flags, loaded, report);

  write_json(flags.json, needle_json(report));
  if (!flags.html.empty()) lm::write_file_atomically(flags.html, needle_html(report));
  if (!flags.png.empty()) lm::write_file_atomically(flags.png, needle_png(report));
  std::string text = needle_table(report, stdout_is_terminal());
  if (!flags.html.empty()) text += "  page: " + flags.html + "\n";
  if (!flags.png.empty()) text += "  picture: " + flags.png + "\n";
  print(text);
  return kSuccess;
}

void declare_test(CLI::App& command, NeedleFlags& flags) {
  const char* group = "Test";
  command.add_option("--text", flags.texts, "Files of real text to hide the facts in")
      ->required()
      ->type_name("FILE")
      ->group(group);
  flags.options.lengths = {4096, 8192};
  command.add_option("--lengths", flags.options.lengths, "Tokens of the whole prompt")
      ->delimiter(',')
      ->check(at_least(1))
      ->default_str("4096,8192")
      ->type_name("N,N")
      ->group(group);
  command.add_option("--depths", flags.options.depths, "Places of the facts, from the beginning to the end")
      ->check(between(1, 1000))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--needles", flags.options.needles, "Facts asked at each length and depth; their text is read once")
      ->check(between(1, 1000))
      ->capture_default_str()
      ->group(group);
  command.add_option("--distractors", flags.options.distractors, "Near-identical sentences beside each fact")
      ->check(between(0, 100))
      ->capture_default_str()
      ->group(group);
  command.add_option("--seed", flags.options.seed, "Of the facts and their places")
      ->capture_default_str()
      ->group(group);
}

}  // namespace

void add_needle(CLI::App& program, Action& action) {
  auto flags = std::make_shared<NeedleFlags>();
  CLI::App* command = program.add_subcommand("needle", "Hide facts in long real text and ask for them");
  declare_test(*command, *flags);
  command->add_option("--json", flags->json, "Write the results to this file")->type_name("OUT")->group("Output");
  command->add_option("--html", flags->html, "Write a page with heat maps and the speed curve")
      ->type_name("OUT")
      ->group("Output");
  command->add_option("--png", flags->png, "Write a picture of the same")->type_name("OUT")->group("Output");
  flags->model.declare(*command);
  command->add_option("--attention", flags->attentions, "One or several of model, full, moba")
      ->delimiter(',')
      ->check(attention_names())
      ->default_str("full,moba")
      ->type_name("NAME,NAME")
      ->group("Attention");
  command
      ->add_option("--full-up-to", flags->full_up_to,
                   "Read with full attention only lengths up to this (it takes long)")
      ->check(at_least(1))
      ->type_name("N")
      ->group("Attention");
  flags->plan.declare(*command);
  command->footer(
      "Examples:\n"
      "  moba needle --text book.txt --lengths 4096,16384 --depths 5 --needles 5 --html needle.html\n"
      "  moba needle --text *.txt --lengths 4096,16384,65536 --full-up-to 16384 --html needle.html\n"
      "  moba needle --text *.txt --lengths 65536 --attention moba --json needle.json");
  command->callback([flags, &action] {
    remove_repeats(flags->options.lengths);
    remove_repeats(flags->attentions);
    for (const std::string& attention : flags->attentions) {
      if (lengths_of(*flags, attention).empty()) {
        throw CLI::ValidationError("--full-up-to", "leaves no length for full attention");
      }
    }
    action = [flags] { return run_needle_command(*flags); };
  });
}

}  // namespace moba::app
