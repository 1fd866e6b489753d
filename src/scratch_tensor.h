// A contiguous tensor in scratch memory, given back when it goes out of scope.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "checks.h"
#include "moba/tensor.h"
#include "scratch.h"

namespace moba {

/// Uninitialised. `purpose` names the tensor in messages: Error (kInvalidArgument) for a shape that no memory holds,
/// kWorkspace where the allocator returns null.
class ScratchTensor {
 public:
  ScratchTensor(Context& context, DType dtype, std::initializer_list<std::int64_t> shape, const char* purpose,
                Device device = {})
      : view_(nullptr, dtype, shape, device), memory_(context, counted_bytes(view_, purpose), purpose) {
    view_.data = memory_.data();
  }
  const TensorView& view() const { return view_; }

 private:
  static std::int64_t counted_bytes(const TensorView& view, const char* purpose) {
    check_countable("the shape of " + std::string(purpose), view);
    return view.numel() * size_of(view.dtype);
  }

  TensorView view_;
  Scratch<std::byte> memory_;
};

}  // namespace moba
