// Scratch memory from the caller's allocator, given back when it goes out of scope.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "moba/context.h"
#include "moba/error.h"

namespace moba {

/// Throws Error (kWorkspace) where a verb needs more scratch at a time than the caller's limit.
inline void require_workspace(const Context& context, std::int64_t bytes, const char* purpose) {
  if (bytes <= context.workspace_limit()) return;
  throw Error(ErrorCode::kWorkspace, "workspace_limit is " + std::to_string(context.workspace_limit()) +
                                         " bytes; it must be at least " + std::to_string(bytes) + " here (" + purpose +
                                         "). Raise Context::workspace_limit, or use fewer threads.");
}

/// `count` elements of T, uninitialised. Throws Error (kWorkspace) where the allocator returns null; `purpose` names
/// the need in the message.
template <class T>
class Scratch {
 public:
  Scratch(Context& context, std::int64_t count, const char* purpose) : context_(&context), count_(count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    data_ = static_cast<T*>(context.allocate(bytes));
    if (data_ == nullptr) {
      throw Error(ErrorCode::kWorkspace,
                  "scratch: the caller's allocator returned null for " + std::to_string(bytes) + " bytes (" + purpose +
                      "). Free memory, or lower Context::workspace_limit so that the work is cut into smaller pieces.");
    }
  }
  ~Scratch() { context_->release(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* data() const { return data_; }
  std::int64_t size() const { return count_; }
  T& operator[](std::int64_t i) const { return data_[i]; }
  T* begin() const { return data_; }
  T* end() const { return data_ + count_; }

 private:
  Context* context_;
  std::int64_t count_;
  T* data_ = nullptr;
};

}  // namespace moba
