#include "lm/util/files.h"

#include <sys/resource.h>

#include <csignal>

#include "lm/util/utf8.h"
#include "model_support.h"

namespace moba::lm {
namespace {

using testing::expect_error;
using testing::TempFolder;

/// Stands for a full disk: no file of this process may grow beyond `bytes` while it lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

TEST(Files, WriteThenRead) {
  const TempFolder folder;
  const std::string content("a\0b\xFF\n", 5);
  write_file_atomically(folder / "new/deep/file.bin", content);
  EXPECT_EQ(read_file(folder / "new/deep/file.bin"), content);
  write_file_atomically(folder / "new/deep/file.bin", "");
  EXPECT_EQ(read_file(folder / "new/deep/file.bin"), "");
}

TEST(Files, ReadErrorsNameThePathAndTheReason) {
  const TempFolder folder;
  expect_error([&] { read_file(folder / "absent"); }, {(folder / "absent").string(), "no such file"});
  expect_error([&] { read_file(folder.path()); }, {folder.path().string(), "directory"});
}

TEST(Files, AFullDiskLeavesTheOldFileAndNothingElse) {
  const TempFolder folder;
  write_file_atomically(folder / "file", "old");
  {
    const FileSizeLimit limit(1000);
    expect_error([&] { write_file_atomically(folder / "file", std::string(5000, 'x')); },
                 {(folder / "file").string(), "nothing was changed"});
  }
  EXPECT_EQ(read_file(folder / "file"), "old");
  EXPECT_EQ(folder.count(), 1u);
}

TEST(Files, AnExceptionBeforeCommitLeavesNothing) {
  const TempFolder folder;
  {
    AtomicFile file(folder / "file");
    file.write("half");
  }
  EXPECT_EQ(folder.count(), 0u);
}

TEST(Files, OutputPathsAreCheckedAndNothingIsLeft) {
  const TempFolder folder;
  check_output_path(folder / "made/out.json");
  EXPECT_TRUE(std::filesystem::is_directory(folder / "made"));
  EXPECT_TRUE(std::filesystem::is_empty(folder / "made"));
  expect_error([&] { check_output_path(folder.path()); }, {folder.path().string(), "directory"});
  expect_error([&] { check_output_path(""); }, {"not a file name"});
  write_file_atomically(folder / "plain", "x");
  expect_error([&] { check_output_path(folder / "plain/out.json"); }, {(folder / "plain").string()});
  expect_error([&] { check_output_path("/proc/moba/out.json"); }, {"/proc/moba"});
}

TEST(Utf8, FindsTheFirstInvalidByte) {
  constexpr auto kValid = std::string_view::npos;
  EXPECT_EQ(find_invalid_utf8(""), kValid);
  EXPECT_EQ(find_invalid_utf8("plain"), kValid);
  EXPECT_EQ(find_invalid_utf8("\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80 \xEF\xBF\xBD \xF4\x8F\xBF\xBF"), kValid);
  EXPECT_EQ(find_invalid_utf8("ab\xFF"), 2u);
  EXPECT_EQ(find_invalid_utf8("a\x80"), 1u);             // a continuation without a beginning
  EXPECT_EQ(find_invalid_utf8("\xC0\xAF"), 0u);          // overlong
  EXPECT_EQ(find_invalid_utf8("\xE0\x9F\xBF"), 0u);      // overlong
  EXPECT_EQ(find_invalid_utf8("\xED\xA0\x80"), 0u);      // a surrogate
  EXPECT_EQ(find_invalid_utf8("\xF4\x90\x80\x80"), 0u);  // above U+10FFFF
  EXPECT_EQ(find_invalid_utf8("x\xE2\x82"), 1u);         // cut short
  EXPECT_EQ(find_invalid_utf8("\xE2\x28\xA1"), 0u);
}

TEST(Utf8, CountsOnlyTailsThatCanBeCompleted) {
  EXPECT_EQ(incomplete_utf8_tail("abc"), 0u);
  EXPECT_EQ(incomplete_utf8_tail("a\xC3"), 1u);
  EXPECT_EQ(incomplete_utf8_tail("a\xE2\x82"), 2u);
  EXPECT_EQ(incomplete_utf8_tail("\xF0\x9F\x98"), 3u);
  EXPECT_EQ(incomplete_utf8_tail("\xE2\x82\xAC"), 0u);  // whole
  EXPECT_EQ(incomplete_utf8_tail("a\xFF"), 0u);         // begins nothing
  EXPECT_EQ(incomplete_utf8_tail("a\x80"), 0u);
  EXPECT_EQ(incomplete_utf8_tail("\xED\xA0"), 0u);  // a surrogate: no continuation helps
}

}  // namespace
}  // namespace moba::lm
