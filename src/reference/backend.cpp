#include "moba/backend.h"

#include "reference/verbs.h"

namespace moba {
namespace {

class ReferenceBackend final : public Backend {
 public:
  const char* name() const override { return "reference"; }
  bool supports(DType dtype) const override {
    return dtype == DType::kFloat64 || dtype == DType::kFloat32 || dtype == DType::kBFloat16 ||
           dtype == DType::kFloat16;
  }
  bool supports_pages() const override { return true; }
  void pool(Context& context, const PoolArgs& args) const override { reference::pool(context, args); }
  void score(Context& context, const ScoreArgs& args) const override { reference::score(context, args); }
  void select(Context& context, const SelectArgs& args) const override { reference::select(context, args); }
  void invert(Context& context, const InvertArgs& args) const override { reference::invert(context, args); }
  void attend(Context& context, const AttendArgs& args) const override { reference::attend(context, args); }
  void attend_backward(Context& context, const AttendBackwardArgs& args) const override {
    reference::attend_backward(context, args);
  }
  void merge(Context& context, const MergeArgs& args) const override { reference::merge(context, args); }
};

}  // namespace

const Backend& reference_backend() {
  static const ReferenceBackend kBackend;
  return kBackend;
}

}  // namespace moba
