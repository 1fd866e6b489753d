#include "lm/data/text_files.h"

#include <fmt/core.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "moba/error.h"

namespace moba::lm {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& key, const fs::path& path, const std::string& rule) {
  throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: {}: {}", key, path.string(), rule));
}

TextFile describe(const fs::path& path, const std::string& key) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) fail(key, path, std::strerror(errno));
  return {path, static_cast<std::int64_t>(status.st_size),
          std::int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec};
}

std::vector<TextFile> search(const fs::path& folder, const std::string& key) {
  std::vector<TextFile> files;
  std::error_code code;
  fs::recursive_directory_iterator entry(folder, fs::directory_options::follow_directory_symlink, code);
  for (; !code && entry != fs::recursive_directory_iterator(); entry.increment(code)) {
    if (entry->path().extension() != ".txt" || !entry->is_regular_file()) continue;
    TextFile file = describe(entry->path(), key);
    if (file.size > 0) files.push_back(std::move(file));
  }
  if (code) fail(key, folder, "cannot be searched: " + code.message());
  if (files.empty()) fail(key, folder, "holds no *.txt file with text in it");
  std::sort(files.begin(), files.end(), [](const TextFile& a, const TextFile& b) { return a.path < b.path; });
  return files;
}

}  // namespace

std::vector<TextFile> list_text_files(const std::vector<fs::path>& paths, const std::string& key) {
  std::vector<TextFile> files;
  for (const fs::path& path : paths) {
    std::error_code code;
    const fs::file_status status = fs::status(path, code);
    if (!fs::exists(status)) fail(key, path, "does not exist");
    if (fs::is_directory(status)) {
      const std::vector<TextFile> found = search(path, key);
      files.insert(files.end(), found.begin(), found.end());
      continue;
    }
    if (!fs::is_regular_file(status)) fail(key, path, "is neither a file nor a folder");
    files.push_back(describe(path, key));
    if (files.back().size == 0) fail(key, path, "is empty; name a file with text in it");
  }
  return files;
}

}  // namespace moba::lm
