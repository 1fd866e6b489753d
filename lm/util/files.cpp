#include "lm/util/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <utility>

#include "lm/util/fail.h"

namespace moba::lm {
namespace {

namespace fs = std::filesystem;

std::string text_of(int error_number) {
  return std::generic_category().message(error_number);
}

/// Closes on every way out.
class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

/// Opens a regular file (or a pipe) for reading; refuses a directory, which open(2) itself would not.
int open_for_reading(const fs::path& file, struct stat& status) {
  const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    const int error_number = errno;
    fail(file, error_number == ENOENT ? "there is no such file" : "cannot be read: " + text_of(error_number));
  }
  if (::fstat(descriptor, &status) != 0 || S_ISDIR(status.st_mode)) {
    const bool is_directory = S_ISDIR(status.st_mode);
    ::close(descriptor);
    fail(file, is_directory ? "is a directory; a file is needed" : "cannot be read");
  }
  return descriptor;
}

fs::path folder_of(const fs::path& file) {
  return file.has_parent_path() ? file.parent_path() : fs::path(".");
}

/// Makes the parents of `file` and refuses what can never become a file there.
void prepare_folder(const fs::path& file) {
  if (file.empty() || !file.has_filename()) fail(file, "is not a file name; name a file to write");
  std::error_code error;
  if (fs::is_directory(file, error)) fail(file, "is a directory; name a file to write");
  // The rename would put a file in the place of a device node or a pipe.
  if (fs::exists(file, error) && !fs::is_regular_file(file, error)) {
    fail(file, "is not a regular file; name a file to write");
  }
  const fs::path folder = folder_of(file);
  fs::create_directories(folder, error);
  if (error) fail(file, fmt::format("its folder {} cannot be made: {}", folder.string(), error.message()));
  if (!fs::is_directory(folder, error)) {
    fail(file, fmt::format("its parent {} is not a folder", folder.string()));
  }
}

/// A name in the same folder (rename is atomic only within one file system), unlike any other of this process.
fs::path temporary_name(const fs::path& file) {
  static std::atomic<std::uint64_t> counter{0};
  return folder_of(file) / fmt::format(".{}.{}-{}.tmp", file.filename().string(), ::getpid(), counter++);
}

}  // namespace

std::string read_file(const fs::path& file) {
  struct stat status {};
  const Descriptor descriptor(open_for_reading(file, status));
  std::string content;
  content.reserve(static_cast<std::size_t>(status.st_size));
  char buffer[1 << 16];
  while (true) {
    const ssize_t got = ::read(descriptor.get(), buffer, sizeof buffer);
    if (got == 0) return content;
    if (got < 0) {
      if (errno == EINTR) continue;
      fail(file, "cannot be read: " + text_of(errno));
    }
    content.append(buffer, static_cast<std::size_t>(got));
  }
}

void write_file_atomically(const fs::path& file, std::string_view content) {
  AtomicFile out(file);
  out.write(content);
  out.commit();
}

void check_output_path(const fs::path& file) {
  // Making the temporary is the only test of "writable" that also holds for root, read-only mounts and quotas.
  const AtomicFile probe(file);
}

AtomicFile::AtomicFile(fs::path file) : file_(std::move(file)) {
  prepare_folder(file_);
  temporary_ = temporary_name(file_);
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) lm::fail(file_, "cannot be written: " + text_of(errno));
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* action, int error_number) {
  lm::fail(file_, fmt::format("{} failed: {}; nothing was changed", action, text_of(error_number)));
}

void AtomicFile::write(const void* data, std::size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(descriptor_, next, bytes);
    if (written < 0) {
      if (errno == EINTR) continue;
      fail("writing", errno);
    }
    next += written;
    bytes -= static_cast<std::size_t>(written);
  }
}

void AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) fail("flushing to disk", errno);
  const int descriptor = std::exchange(descriptor_, -1);
  if (::close(descriptor) != 0) fail("closing", errno);
  if (::rename(temporary_.c_str(), file_.c_str()) != 0) fail("renaming into place", errno);
  temporary_.clear();
  // The rename itself survives a power cut only once the folder is on disk. Some file systems refuse fsync on a folder;
  // the file is whole either way.
  const Descriptor folder(::open(folder_of(file_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() >= 0) ::fsync(folder.get());
}

MappedFile::MappedFile(const fs::path& file) {
  struct stat status {};
  const Descriptor descriptor(open_for_reading(file, status));
  if (!S_ISREG(status.st_mode)) fail(file, "is not a regular file and cannot be mapped into memory");
  size_ = static_cast<std::size_t>(status.st_size);
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor.get(), 0);
  if (address == MAP_FAILED) fail(file, "cannot be mapped into memory: " + text_of(errno));
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace moba::lm
