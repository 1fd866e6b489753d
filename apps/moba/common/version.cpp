#include "common/version.h"

#include <torch/version.h>

#include <fmt/format.h>

namespace moba::app {

std::string moba_version() {
  return MOBA_VERSION;
}

std::string torch_version() {
  return TORCH_VERSION;
}

std::string compiler_version() {
#ifdef __clang__
  return "Clang " __clang_version__;
#else
  return "GCC " __VERSION__;
#endif
}

std::string version_line() {
  return fmt::format("moba {} (torch {}, {})", moba_version(), torch_version(), compiler_version());
}

}  // namespace moba::app
