// The backend of Hopper GPUs as one object, exported by name: libmoba_cuda.so is loaded at run time where there is such
// a device.
#include "moba/backend.h"

#include "cuda/attend_backward.h"
#include "cuda/gate.h"
#include "cuda/pages.h"
#include "cuda/verbs.h"

namespace moba::cuda {
namespace {

class CudaPages final : public DevicePages {
 public:
  void mirror(Context& context, const PagedKvCache& cache, std::span<const PageRun> runs) const override {
    cuda::mirror(context, cache, runs);
  }
  void copy_pages(Context& context, const PagedKvCache& cache, std::span<const PageCopy> copies) const override {
    cuda::copy_pages(context, cache, copies);
  }
  void write(Context& context, const PagedKvCache& cache, std::span<const SequenceTokens> parts,
             const ConstTensorView& k_new, const ConstTensorView& v_new) const override {
    cuda::write(context, cache, parts, k_new, v_new);
  }
  void rebuild_sums(Context& context, const PagedKvCache& cache, std::int64_t sequence) const override {
    cuda::rebuild_sums(context, cache, sequence);
  }
  void decode(Context& context, const DecodeArgs& args) const override { cuda::decode(context, args); }
  void gather(Context& context, const PagedKvCache& cache, std::int64_t sequence, std::int64_t rows,
              const GatheredSequence& to) const override {
    cuda::gather(context, cache, sequence, rows, to);
  }
};

class CudaBackend final : public Backend {
 public:
  const char* name() const override { return "cuda"; }
  bool supports(DType dtype) const override { return dtype == DType::kBFloat16 || dtype == DType::kFloat16; }
  DeviceKind device() const override { return DeviceKind::kCuda; }
  const DevicePages* device_pages() const override { return &pages_; }

  void pool(Context& context, const PoolArgs& args) const override { cuda::pool(context, args); }
  void score(Context& context, const ScoreArgs& args) const override { cuda::score(context, args); }
  void select(Context& context, const SelectArgs& args) const override {
    cuda::select(context, args, {args.rule.force_previous, args.rule.sink_blocks});
  }
  void invert(Context& context, const InvertArgs& args) const override { cuda::invert(context, args); }
  void attend(Context& context, const AttendArgs& args) const override { cuda::attend(context, args); }
  void attend_backward(Context& context, const AttendBackwardArgs& args) const override {
    cuda::attend_backward(context, args);
  }
  void merge(Context& context, const MergeArgs& args) const override { cuda::merge(context, args); }

 private:
  CudaPages pages_;
};

}  // namespace
}  // namespace moba::cuda

extern "C" __attribute__((visibility("default"))) const moba::Backend* moba_cuda_backend() {
  static const moba::cuda::CudaBackend backend;
  return &backend;
}
