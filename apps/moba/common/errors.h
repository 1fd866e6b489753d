// What ends a command early, and the exit code it ends with.
#pragma once

#include <stdexcept>
#include <string>

namespace moba::app {

inline constexpr int kSuccess = 0;
inline constexpr int kFailure = 1;
inline constexpr int kUsage = 2;

/// The command line asks for something that makes no sense: exit code 2. Every other exception is a failure: 1.
class UsageError : public std::runtime_error {
 public:
  explicit UsageError(const std::string& message) : std::runtime_error(message) {}
};

}  // namespace moba::app
