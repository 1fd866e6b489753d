// Files that appear whole or not at all.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace moba::lm {

/// The whole file as bytes. Error names the path and whether it is missing, a directory or unreadable.
std::string read_file(const std::filesystem::path& file);

/// Writes `content` to a temporary name beside `file`, flushes it to disk and renames. Missing parents are created.
/// Error on a full disk or a missing permission; nothing partial is left behind.
void write_file_atomically(const std::filesystem::path& file, std::string_view content);

/// Checks that `file` can be created (parents are made, it is not a directory, the folder is writable) before work
/// starts; Error says what is in the way.
void check_output_path(const std::filesystem::path& file);

}  // namespace moba::lm
