// Files that appear whole or not at all.
#pragma once

#include <cstddef>
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

/// A file written in pieces under a temporary name in its own folder. `commit` flushes it to disk and renames it;
/// without `commit` (an exception, an early return) the temporary is removed and an older `file` stays as it was.
class AtomicFile {
 public:
  /// Creates missing parents and the temporary. Error names what is in the way.
  explicit AtomicFile(std::filesystem::path file);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Appends; Error when not every byte could be written (full disk, size limit).
  void write(const void* data, std::size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  /// Flush to disk, rename, flush the folder. Call once, last.
  void commit();

 private:
  [[noreturn]] void fail(const char* action, int error_number);

  std::filesystem::path file_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

/// A whole file mapped into memory, read only.
class MappedFile {
 public:
  /// Error names the path and whether it is missing, a directory or unreadable. An empty file maps to no bytes.
  explicit MappedFile(const std::filesystem::path& file);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace moba::lm
