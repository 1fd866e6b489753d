// The proof that the sparse path is exact: every block chosen must equal full attention, forward and backward.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "checks.h"
#include "dtype.h"
#include "moba/pipeline.h"
#include "scratch.h"
#include "scratch_tensor.h"

namespace moba {
namespace {

constexpr const char* kPurpose = "a result of the self-check";

/// out, lse and gradients of one way to attend.
struct Results {
  ScratchTensor out, lse, dq, dk, dv;
  Results(Context& context, const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v)
      : out(context, q.dtype, {q.shape[0], q.shape[1], v.shape[2]}, kPurpose),
        lse(context, accumulator_dtype(q.dtype), {q.shape[1], q.shape[0]}, kPurpose),
        dq(context, q.dtype, {q.shape[0], q.shape[1], q.shape[2]}, kPurpose),
        dk(context, q.dtype, {k.shape[0], k.shape[1], k.shape[2]}, kPurpose),
        dv(context, q.dtype, {v.shape[0], v.shape[1], v.shape[2]}, kPurpose) {}
};

/// Uniform in [-1, 1), from the splitmix64 generator (Steele, Lea, Flood 2014).
double random_value(std::uint64_t& state) {
  std::uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-52 - 1.0;
}

void fill_random(const TensorView& tensor, std::uint64_t seed) {
  dispatch("dout", tensor.dtype, FloatTypes{}, [&]<class T>() {
    for (std::int64_t i = 0; i < tensor.numel(); ++i) tensor.as<T>()[i] = round_to<T>(random_value(seed));
  });
}

/// max |a - b| / max |b|. A value that is finite in one tensor only counts as infinitely far; the same infinity in both
/// counts as equal, and so do two NaNs.
double relative_error(const TensorView& a, const TensorView& b) {
  double difference = 0.0, size = 0.0;
  dispatch("result", a.dtype, FloatTypes{}, [&]<class T>() {
    for (std::int64_t i = 0; i < a.numel(); ++i) {
      const double x = to_double(a.as<T>()[i]), y = to_double(b.as<T>()[i]);
      if (x == y || (std::isnan(x) && std::isnan(y))) {
        if (std::isfinite(y)) size = std::max(size, std::fabs(y));
      } else if (!std::isfinite(x) || !std::isfinite(y)) {
        difference = HUGE_VAL;
      } else {
        difference = std::max(difference, std::fabs(x - y));
        size = std::max(size, std::fabs(y));
      }
    }
  });
  return difference == 0.0 ? 0.0 : difference / size;
}

/// Both sides round their results to the dtype once and accumulate in float32 (float64 for float64), so they differ by
/// little more than one unit in the last place of the largest value: a few times 2^-8 (bfloat16), 2^-11 (float16).
/// float32 adds rounding of sums over thousands of keys.
double tolerance_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return 1e-10;
    case DType::kFloat32: return 5e-5;
    case DType::kFloat16: return 4e-3;
    default: return 2e-2;
  }
}

}  // namespace

std::string SelfCheckReport::summary() const {
  char text[256];
  std::snprintf(text, sizeof text, "%s: relative errors out %.1e, lse %.1e, dq %.1e, dk %.1e, dv %.1e (tolerance %.1e)",
                passed ? "passed" : "FAILED", out_error, lse_error, dq_error, dk_error, dv_error, tolerance);
  return text;
}

SelfCheckReport self_check(Context& context, const Backend& backend, const AttentionOptions& options, ConstTensorView q,
                           ConstTensorView k, ConstTensorView v, const PackedBatch& batch, std::uint64_t seed) {
  check_queries_and_keys(backend, q, k);
  if (backend.device() != DeviceKind::kCpu) {
    throw Error(ErrorCode::kUnsupported, std::string("backend is '") + backend.name() +
                                             "'; the self-check compares on the host. Use cpu_backend() or "
                                             "reference_backend().");
  }
  AttentionOptions every_block = options;
  every_block.kind = Kind::kMoba;
  every_block.compat_topk1_full = false;
  every_block.top_k = std::max<std::int64_t>(batch.max_seqlen_k, 1);  // at least the number of blocks
  every_block.force_previous = false;                                 // where all are chosen, force changes nothing
  every_block.sink_blocks = 0;
  Selection chosen = plan_selection(every_block, q.shape[0], q.shape[1], k.shape[1], batch.max_seqlen_k);
  check_countable("the list of all blocks (Tq x H x budget)", chosen.blocks);
  Scratch<std::int32_t> list(context, chosen.blocks.numel(), "the list of all blocks");
  chosen.blocks.data = list.data();

  require(v.rank == 3, "the rank of v", std::to_string(v.rank), "3, [Tk, HK, Dv]", "Reshape the tensor.");
  const Results sparse(context, q, k, v), full(context, q, k, v);
  const ScratchTensor dout(context, q.dtype, {q.shape[0], q.shape[1], v.shape[2]}, kPurpose);
  fill_random(dout.view(), seed);

  select(context, backend, every_block, q, k, {}, batch, chosen);
  const auto run = [&](const Selection& selection, const Results& r) {
    attend(context, backend, {q, k, v, batch, selection, options.softmax_scale, {r.out.view(), r.lse.view()}});
    attend_backward(context, backend,
                    {q, k, v, batch, selection, options.softmax_scale, r.out.view(), r.lse.view(), dout.view(),
                     ConstTensorView(), r.dq.view(), r.dk.view(), r.dv.view()});
  };
  run(chosen, sparse);
  run(Selection{}, full);

  SelfCheckReport report;
  report.out_error = relative_error(sparse.out.view(), full.out.view());
  report.lse_error = relative_error(sparse.lse.view(), full.lse.view());
  report.dq_error = relative_error(sparse.dq.view(), full.dq.view());
  report.dk_error = relative_error(sparse.dk.view(), full.dk.view());
  report.dv_error = relative_error(sparse.dv.view(), full.dv.view());
  report.tolerance = tolerance_of(q.dtype);
  report.passed = std::max({report.out_error, report.lse_error, report.dq_error, report.dk_error, report.dv_error}) <=
                  report.tolerance;
  return report;
}

}  // namespace moba
