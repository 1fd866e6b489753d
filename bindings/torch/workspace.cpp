#include "workspace.h"

#include <torch/library.h>

#include <atomic>
#include <string>

#include "checks.h"
#include "moba/context.h"
#include "moba/error.h"

namespace moba::torch_ops {
namespace {

std::atomic<std::int64_t>& limit() {
  static std::atomic<std::int64_t> bytes{SerialContext().workspace_limit()};
  return bytes;
}

}  // namespace

std::int64_t workspace_limit() {
  return limit().load();
}

void set_workspace_limit(std::int64_t bytes) {
  if (bytes <= 0) {
    throw Error(ErrorCode::kInvalidArgument, "workspace_limit is " + std::to_string(bytes) +
                                                 " bytes; it must be positive. The default is 1610612736.");
  }
  limit().store(bytes);
}

TORCH_LIBRARY_FRAGMENT(moba, library) {
  library.def("workspace_limit() -> int", [] { return workspace_limit(); });
  library.def("set_workspace_limit(int bytes) -> ()",
              [](std::int64_t bytes) { as_operator([&] { set_workspace_limit(bytes); }); });
}

}  // namespace moba::torch_ops
