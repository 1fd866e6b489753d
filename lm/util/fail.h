// The one way in which a file at fault is reported.
#pragma once

#include <filesystem>
#include <string>

#include "moba/error.h"

namespace moba::lm {

/// Throws Error: "WHERE: PROBLEM", where WHERE is a file, or a file and the place in it.
[[noreturn]] inline void fail(const std::string& where, const std::string& problem) {
  throw Error(ErrorCode::kInvalidArgument, where + ": " + problem);
}

[[noreturn]] inline void fail(const std::filesystem::path& file, const std::string& problem) {
  fail(file.string(), problem);
}

[[noreturn]] inline void fail(const char* where, const std::string& problem) {
  fail(std::string(where), problem);
}

}  // namespace moba::lm
