// The CPU backend as one object: a table of the verbs in this folder.
#include "moba/backend.h"

#include "cpu/verbs.h"

namespace moba {
namespace {

class CpuBackend final : public Backend {
 public:
  const char* name() const override { return "cpu"; }
  bool supports(DType dtype) const override {
    return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
  }
  bool supports_pages() const override { return true; }

  void pool(Context& context, const PoolArgs& args) const override { cpu::pool(context, args); }
  void score(Context& context, const ScoreArgs& args) const override { cpu::score(context, args); }
  void select(Context& context, const SelectArgs& args) const override { cpu::select(context, args); }
  void invert(Context& context, const InvertArgs& args) const override { cpu::invert(context, args); }
  void attend(Context& context, const AttendArgs& args) const override { cpu::attend(context, args); }
  void attend_backward(Context& context, const AttendBackwardArgs& args) const override {
    cpu::attend_backward(context, args);
  }
  void merge(Context& context, const MergeArgs& args) const override { cpu::merge(context, args); }
};

}  // namespace

const Backend& cpu_backend() {
  static const CpuBackend kBackend;
  return kBackend;
}

}  // namespace moba
