#include "lm/train/run_folder.h"

#include <fmt/core.h>

#include "lm/util/files.h"
#include "moba/error.h"

namespace moba::lm {

bool RunFolder::holds_a_run() const {
  namespace fs = std::filesystem;
  return fs::exists(checkpoints()) || fs::exists(metrics()) || fs::exists(final_model());
}

void RunFolder::prepare(bool resume) const {
  if (root.empty())
    throw Error(ErrorCode::kInvalidArgument, "run.out: is missing; name the run's folder there or with --out");
  std::error_code code;
  if (std::filesystem::exists(root, code) && !std::filesystem::is_directory(root, code))
    throw Error(ErrorCode::kInvalidArgument, fmt::format("run.out = {}: is a file; name a folder", root.string()));
  if (!resume && holds_a_run())
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("run.out = {}: holds a run already; go on with --resume, or name another folder", root.string()));
  check_output_path(config());
}

}  // namespace moba::lm
