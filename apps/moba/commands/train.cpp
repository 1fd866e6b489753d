// moba train: trains a model from one TOML file.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/command.h"
#include "common/errors.h"
#include "common/output.h"
#include "lm/train/train.h"

namespace moba::app {
namespace {

struct TrainFlags {
  std::string config;
  std::vector<std::string> overrides;
  std::optional<std::string> out;
  bool resume = false;
  std::optional<double> max_minutes;
};

int run_train(const TrainFlags& flags) {
  lm::TrainArguments arguments;
  arguments.config = flags.config;
  arguments.overrides = flags.overrides;
  if (flags.out) arguments.out = *flags.out;
  arguments.resume = flags.resume;
  arguments.max_minutes = flags.max_minutes;
  arguments.log = [](const std::string& line) { print(line + "\n"); };
  lm::train(arguments);
  return kSuccess;
}

}  // namespace

void add_train(CLI::App& program, Action& action) {
  auto flags = std::make_shared<TrainFlags>();
  CLI::App* command = program.add_subcommand("train", "Train a model from a TOML file");
  command->add_option("--config", flags->config, "What to train, on what, how")->required()->type_name("FILE.toml");
  command->add_option("--set", flags->overrides, "Overrides a key of the file; may be given several times")
      ->type_name("section.key=value")
      ->allow_extra_args(false);
  command->add_option("--out", flags->out, "Folder of the run, in place of [run] out")->type_name("DIR");
  command->add_flag("--resume", flags->resume, "Go on from the newest whole checkpoint in the folder of the run");
  command->add_option("--max-minutes", flags->max_minutes, "Stop after so long, with a checkpoint")
      ->check(CLI::PositiveNumber);
  command->footer(
      "Ctrl-C stops after the current step, with a checkpoint; --resume goes on from there.\n\n"
      "Examples:\n"
      "  moba train --config configs/books_64k.toml --out runs/books --max-minutes 8\n"
      "  moba train --config configs/books_64k.toml --out runs/books --resume\n"
      "  moba train --config tiny.toml --set optimizer.lr=0.001 --set run.device=cpu");
  command->callback([flags, &action] { action = [flags] { return run_train(*flags); }; });
}

}  // namespace moba::app
