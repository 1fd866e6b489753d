// The backend of Hopper GPUs as one object, exported by name: libmoba_cuda.so is loaded at run time where there is such
// a device.
#include "moba/backend.h"

#include "cuda/attend_backward.h"
#include "cuda/gate.h"
#include "cuda/verbs.h"

namespace moba::cuda {
namespace {

class CudaBackend final : public Backend {
 public:
  const char* name() const override { return "cuda"; }
  bool supports(DType dtype) const override { return dtype == DType::kBFloat16 || dtype == DType::kFloat16; }
  DeviceKind device() const override { return DeviceKind::kCuda; }

  void pool(Context& context, const PoolArgs& args) const override { cuda::pool(context, args); }
  void score(Context& context, const ScoreArgs& args) const override { cuda::score(context, args); }
  void select(Context& context, const SelectArgs& args) const override { cuda::select(context, args); }
  void invert(Context& context, const InvertArgs& args) const override { cuda::invert(context, args); }
  void attend(Context& context, const AttendArgs& args) const override { cuda::attend(context, args); }
  void attend_backward(Context& context, const AttendBackwardArgs& args) const override {
    cuda::attend_backward(context, args);
  }
  void merge(Context& context, const MergeArgs& args) const override { cuda::merge(context, args); }
};

}  // namespace
}  // namespace moba::cuda

extern "C" __attribute__((visibility("default"))) const moba::Backend* moba_cuda_backend() {
  static const moba::cuda::CudaBackend backend;
  return &backend;
}
