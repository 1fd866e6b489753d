// moba generate: continues a prompt.
#include <memory>
#include <string>
#include <vector>

#include "common/attention_choice.h"
#include "common/command.h"
#include "common/errors.h"
#include "common/model_choice.h"
#include "common/output.h"
#include "common/progress.h"
#include "common/text_files.h"
#include "lm/generate/generate.h"
#include "lm/util/files.h"
#include "moba/error.h"

namespace moba::app {
namespace {

struct GenerateFlags {
  ModelChoice model;
  PlanFlags plan;
  bool prompt_given = false;  // an empty prompt is one too
  std::string prompt;
  std::string prompt_file;
  std::string attention = "model";
  std::string decode_attention = "same";
  lm::SamplingOptions sampling;
};

std::string read_prompt(const GenerateFlags& flags, const lm::ModelConfig& config) {
  if (flags.prompt_given) {
    check_encoding(flags.prompt, "--prompt", config);
    return flags.prompt;
  }
  std::string text = lm::read_file(flags.prompt_file);
  check_encoding(text, flags.prompt_file, config);
  return text;
}

int run_generate(const GenerateFlags& flags) {
  Progress progress;
  lm::Pretrained loaded = flags.model.load();
  const lm::AttentionPlan plan = choose_plan(flags.attention, loaded.config, flags.plan);
  const lm::AttentionPlan decode_plan = flags.decode_attention == "full" ? lm::AttentionPlan{} : plan;
  const std::vector<std::int64_t> tokens = lm::encode_prompt(*loaded.tokenizer, read_prompt(flags, loaded.config));

  const torch::NoGradGuard no_gradients;
  const auto count = static_cast<std::int64_t>(tokens.size());
  lm::DecodeState state(loaded.config, plan, count + flags.sampling.max_new_tokens,
                        loaded.model->parameters().front().options());
  const torch::Tensor logits =
      lm::prefill(loaded.model, plan, state, tokens, 4096,
                  [&](std::int64_t done, std::int64_t total) { progress.show("reading the prompt", done, total); });
  progress.clear();
  lm::generate(loaded.model, decode_plan, state, *loaded.tokenizer, logits, flags.sampling,
               [](std::string_view piece) { print(piece); });
  return kSuccess;
}

void declare_sampling(CLI::App& command, lm::SamplingOptions& sampling) {
  const char* group = "Sampling";
  command.add_option("--max-new-tokens", sampling.max_new_tokens, "Tokens to write at most")
      ->capture_default_str()
      ->group(group);
  command.add_option("--temperature", sampling.temperature, "0: always the most likely token")
      ->capture_default_str()
      ->group(group);
  command.add_option("--sample-top-k", sampling.top_k, "Draw among the so many most likely tokens (0: all)")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--top-p", sampling.top_p, "Draw among the most likely tokens that together have this probability")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--min-p", sampling.min_p, "Draw among tokens at least so likely, relative to the most likely one")
      ->capture_default_str()
      ->group(group);
  command.add_option("--seed", sampling.seed, "Of the random draws")->capture_default_str()->group(group);
  command.add_option("--stop", sampling.stop, "End before this text; may be given several times")
      ->type_name("TEXT")
      ->allow_extra_args(false)
      ->group(group);
}

}  // namespace

void add_generate(CLI::App& program, Action& action) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command = program.add_subcommand("generate", "Continue a prompt");
  const CLI::Option* prompt = command->add_option("--prompt", flags->prompt, "The text to continue; may be empty")
                                  ->type_name("TEXT")
                                  ->group("Prompt");
  command->add_option("--prompt-file", flags->prompt_file, "A file with the text to continue")
      ->type_name("FILE")
      ->group("Prompt");
  flags->model.declare(*command);
  command->add_option("--attention", flags->attention, "model: the plan of the checkpoint; full or moba in all layers")
      ->check(attention_names())
      ->capture_default_str()
      ->group("Attention");
  command
      ->add_option("--decode-attention", flags->decode_attention,
                   "same, or full: the new tokens attend everything, after a prompt read with --attention")
      ->check(CLI::IsMember({"same", "full"}))
      ->capture_default_str()
      ->group("Attention");
  flags->plan.declare(*command);
  declare_sampling(*command, flags->sampling);
  command->footer(
      "Only the continuation is written to standard output, as it comes.\n\n"
      "Examples:\n"
      "  moba generate --prompt 'It was a dark night' --max-new-tokens 200\n"
      "  moba generate --prompt-file chapter.txt --temperature 0.8 --top-p 0.95 --seed 7\n"
      "  moba generate --model DIR --prompt '' --attention moba --block-size 512 --top-k 3");
  command->callback([flags, prompt, &action] {
    flags->prompt_given = prompt->count() > 0;
    if (flags->prompt_given == !flags->prompt_file.empty()) {
      throw UsageError("generate: give one of --prompt and --prompt-file");
    }
    try {
      lm::check_sampling(flags->sampling);
    } catch (const Error& error) {
      throw UsageError(error.what());
    }
    action = [flags] { return run_generate(*flags); };
  });
}

}  // namespace moba::app
