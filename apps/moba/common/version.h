// What this program is made of.
#pragma once

#include <string>

namespace moba::app {

/// "0.1.0"
std::string moba_version();
/// The torch it was built against and runs with.
std::string torch_version();
/// "GCC 12.2.0"
std::string compiler_version();
/// "moba 0.1.0 (torch 2.11.0, GCC 12.2.0)"
std::string version_line();

}  // namespace moba::app
