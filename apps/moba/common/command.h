// The commands of the program. Each declares its flags and says what to run when it is chosen.
#pragma once

#include <functional>

#include <CLI/CLI.hpp>

namespace moba::app {

/// The work of the chosen command; returns the exit code. Set while the command line is parsed, run afterwards.
using Action = std::function<int()>;

void add_train(CLI::App& program, Action& action);
void add_eval(CLI::App& program, Action& action);
void add_generate(CLI::App& program, Action& action);
void add_needle(CLI::App& program, Action& action);
void add_bench(CLI::App& program, Action& action);
void add_bench_decode(CLI::App& bench, Action& action);
void add_bench_model(CLI::App& bench, Action& action);
void add_check(CLI::App& program, Action& action);
void add_doctor(CLI::App& program, Action& action);

}  // namespace moba::app
