// A strided, non-owning view of a tensor in CPU or device memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

namespace moba {

enum class DType : std::uint8_t { kFloat64, kFloat32, kBFloat16, kFloat16, kInt32, kInt64 };

/// Bytes of one element.
constexpr std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64: return 8;
    case DType::kFloat32:
    case DType::kInt32: return 4;
    case DType::kBFloat16:
    case DType::kFloat16: return 2;
  }
  return 0;
}

/// "float32", "bfloat16", …: the names PyTorch uses.
const char* name_of(DType dtype);

enum class DeviceKind : std::uint8_t { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

inline constexpr int kMaxRank = 4;

/// Pointer, element type, shape and strides (in elements, 64-bit). A default-made view is absent (`data == nullptr`
/// and `rank == 0`): optional arguments are passed so. `Pointer` is `void*` (TensorView) or `const void*`.
template <class Pointer>
struct BasicTensorView {
  Pointer data = nullptr;
  DType dtype = DType::kFloat32;
  Device device;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> shape{};
  std::array<std::int64_t, kMaxRank> stride{};

  BasicTensorView() = default;

  /// A contiguous row-major view.
  BasicTensorView(Pointer data_in, DType dtype_in, std::initializer_list<std::int64_t> shape_in, Device device_in = {})
      : data(data_in), dtype(dtype_in), device(device_in), rank(static_cast<int>(shape_in.size())) {
    int axis = 0;
    for (std::int64_t extent : shape_in) shape[static_cast<std::size_t>(axis++)] = extent;
    std::uint64_t step = 1;  // wraps for a shape that no memory holds; the checks of every call refuse such shapes
    for (axis = rank - 1; axis >= 0; --axis) {
      stride[static_cast<std::size_t>(axis)] = static_cast<std::int64_t>(step);
      step *= static_cast<std::uint64_t>(shape[static_cast<std::size_t>(axis)]);
    }
  }

  /// A view that may be written is also one that may be read.
  template <class Other>
  requires(std::is_same_v<Pointer, const void*>&& std::is_same_v<Other, void*>)
      BasicTensorView(const BasicTensorView<Other>& other)  // NOLINT(google-explicit-constructor)
      : data(other.data),
        dtype(other.dtype),
        device(other.device),
        rank(other.rank),
        shape(other.shape),
        stride(other.stride) {}

  bool present() const { return rank > 0; }
  std::int64_t numel() const {
    std::int64_t n = 1;
    for (int axis = 0; axis < rank; ++axis) n *= shape[static_cast<std::size_t>(axis)];
    return n;
  }
  /// The typed pointer; the caller has checked the dtype.
  template <class T>
  auto as() const {
    using Element = std::conditional_t<std::is_same_v<Pointer, const void*>, const T, T>;
    return static_cast<Element*>(data);
  }
};

using TensorView = BasicTensorView<void*>;
using ConstTensorView = BasicTensorView<const void*>;

}  // namespace moba
