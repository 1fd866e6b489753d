// The one exception type of libmoba.
#pragma once

#include <stdexcept>
#include <string>

namespace moba {

enum class ErrorCode {
  kInvalidArgument,  // the caller handed in something that breaks a stated rule
  kUnsupported,      // legal, but this backend cannot do it; the message says which one can
  kWorkspace,        // the workspace limit is too small, or the caller's allocator returned null
  kMismatch,         // a self-check found two results that should agree and do not
};

/// Every error libmoba reports. The message names the argument, its value, the rule it breaks and the remedy.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace moba
