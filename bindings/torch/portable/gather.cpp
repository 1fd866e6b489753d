#include "portable/gather.h"

#include <cstdint>

namespace moba::torch_ops::portable {
namespace {

constexpr std::int64_t kWideBytes = 16;  // the longest load of a thread

bool splits_into_wide_elements(const at::Tensor& rows) {
  const std::int64_t bytes = rows.element_size();
  return rows.is_contiguous() && rows.size(1) * bytes % kWideBytes == 0 &&
         rows.storage_offset() * bytes % kWideBytes == 0 &&
         reinterpret_cast<std::uintptr_t>(rows.const_data_ptr()) % kWideBytes == 0;
}

}  // namespace

at::Tensor gather_rows(const at::Tensor& rows, const at::Tensor& index) {
  if (!splits_into_wide_elements(rows)) return rows.index_select(0, index);
  return rows.view(at::kComplexDouble).index({index}).view(rows.scalar_type());
}

at::Tensor spaced(const at::Tensor& index) {
  return at::stack({index, index}, 1).select(1, 0);
}

}  // namespace moba::torch_ops::portable
