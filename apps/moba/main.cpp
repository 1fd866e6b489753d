// The program `moba`: one command a file in commands/, exit codes in common/errors.h.
#include <c10/util/Exception.h>

#include <exception>
#include <sstream>
#include <string>
#include <vector>

#include "common/command.h"
#include "common/errors.h"
#include "common/output.h"
#include "common/version.h"

namespace {

using namespace moba::app;

/// A word where a command should stand; empty if there is none.
std::string unknown_command(const CLI::App& program) {
  const CLI::App* last = &program;
  while (!last->get_subcommands().empty()) last = last->get_subcommands().front();
  const std::vector<std::string> left = last->remaining();
  return left.empty() || left.front().starts_with('-') ? "" : left.front();
}

/// CLI11 leaves two blank lines between groups of options.
std::string without_double_blanks(std::string text) {
  for (std::size_t at = text.find("\n\n\n"); at != std::string::npos; at = text.find("\n\n\n", at)) text.erase(at, 1);
  return text;
}

/// Help and version go to standard output, everything else to standard error.
int report_parse_end(const CLI::App& program, const CLI::ParseError& end) {
  std::ostringstream out, error;
  const int code = program.exit(end, out, error);
  print(without_double_blanks(out.str()));
  if (code == 0) return kSuccess;
  std::string message = error.str();
  while (message.ends_with('\n')) message.pop_back();
  const std::string unknown = unknown_command(program);
  print_note("moba: " + (unknown.empty() ? "" : "unknown command '" + unknown + "'. ") + message);
  return kUsage;
}

int run(int argument_count, char** arguments) {
  CLI::App program(
      "moba: trains, tests and runs language models with block-sparse attention (MoBA).\n"
      "Without --model, the model that comes with the program is used.");
  program.name("moba");
  program.set_version_flag("--version", version_line());
  program.require_subcommand(1);
  program.get_formatter()->column_width(36);
  program.footer("Each command has its own --help. Exit code: 0 done, 1 failed, 2 wrong usage.");

  Action action;
  add_generate(program, action);
  add_needle(program, action);
  add_eval(program, action);
  add_train(program, action);
  add_bench(program, action);
  add_check(program, action);
  add_doctor(program, action);

  try {
    program.parse(argument_count, arguments);
  } catch (const CLI::ParseError& end) {
    return report_parse_end(program, end);
  }
  return action();
}

}  // namespace

int main(int argument_count, char** arguments) {
  prepare_standard_streams();
  try {
    return run(argument_count, arguments);
  } catch (const UsageError& error) {
    print_note(std::string("moba: ") + error.what());
    return kUsage;
  } catch (const c10::Error& error) {
    print_note(std::string("moba: torch: ") + error.what_without_backtrace());
  } catch (const std::exception& error) {
    print_note(std::string("moba: ") + error.what());
  }
  return kFailure;
}
