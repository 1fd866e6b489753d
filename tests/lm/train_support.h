// What tests of data, config and training share: temporary folders, small texts, errors.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "lm/data/random.h"
#include "moba/error.h"

namespace moba::lm::testing {

/// A folder of its own that vanishes with it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "moba-test-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TemporaryFolder() {
    std::error_code code;
    std::filesystem::remove_all(path_, code);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline void write_text(const std::filesystem::path& file, const std::string& text) {
  std::filesystem::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary) << text;
}

inline std::string read_text(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str();
}

/// Prose of made-up words in sentences and paragraphs.
inline std::string sample_prose(std::uint64_t seed, std::size_t bytes) {
  constexpr const char* kWords[] = {"the",     "river", "house",  "walked", "slowly",   "under", "a",
                                    "lantern", "and",   "she",    "would",  "never",    "speak", "of",
                                    "it",      "again", "before", "winter", "came",     "with",  "snow",
                                    "on",      "every", "roof",   "while",  "children", "slept"};
  Random random(seed, {});
  std::string text;
  while (text.size() < bytes) {
    const std::int64_t words = random.between(6, 16);
    for (std::int64_t i = 0; i < words; ++i) {
      std::string word = random.pick(kWords);
      if (i == 0) word[0] = static_cast<char>(word[0] - 'a' + 'A');
      text += (i == 0 ? "" : " ") + word;
    }
    text += random.chance(0.2) ? ".\n\n" : ". ";
  }
  text.resize(bytes);
  return text;
}

/// Runs `action`, which must throw moba::Error, and returns its message.
template <typename Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "not a moba::Error: " << error.what();
    return {};
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

#define EXPECT_HAS(text, part) \
  EXPECT_NE(std::string(text).find(part), std::string::npos) << "'" << (part) << "' is not in: " << (text)

}  // namespace moba::lm::testing
