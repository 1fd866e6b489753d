// The list of text files behind the paths of a config.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace moba::lm {

struct TextFile {
  std::filesystem::path path;
  std::int64_t size = 0;      // bytes
  std::int64_t modified = 0;  // nanoseconds since the epoch
};

/// Files as they stand, folders searched for *.txt at any depth; in the order of `paths`, a folder's sorted by name.
/// `key` (for example "data.train") names the list in errors: a missing path, a folder without text, an empty file
/// that was named itself. Empty files in folders are left out.
std::vector<TextFile> list_text_files(const std::vector<std::filesystem::path>& paths, const std::string& key);

}  // namespace moba::lm
