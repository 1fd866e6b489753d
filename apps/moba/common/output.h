// Standard output and standard error. Nothing else in the program writes to either.
#pragma once

#include <string_view>

namespace moba::app {

/// Before anything else: a reader that went away is an error of `write`, not a signal; so is a file grown too large;
/// and a closed standard descriptor is never handed to a file that is opened later.
void prepare_standard_streams();

/// Writes to standard output at once. Throws std::runtime_error when not every byte could be written.
void print(std::string_view text);

/// A line to standard error; nobody to read it is no failure.
void print_note(std::string_view line);

bool stdout_is_terminal();
bool stderr_is_terminal();
/// Columns of the terminal on standard output; 80 where there is none.
int terminal_columns();

}  // namespace moba::app
