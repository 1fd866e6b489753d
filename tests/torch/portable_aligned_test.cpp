// Segments rewritten for narrower kernels give what the plain computation gives for the segments themselves.
#include "portable/aligned.h"

#include <gtest/gtest.h>

#include <limits>
#include <tuple>

namespace moba::torch_ops::portable {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kScale = 0.25;

// More queries than keys, fewer, as many, no keys, no queries; and rows and keys of no segment at both ends.
Segments uneven(std::int64_t window) {
  Segments segments;
  segments.cu_q = at::tensor({2, 12, 15, 22, 26, 26}, at::kInt);
  segments.cu_k = at::tensor({1, 5, 14, 21, 21, 27}, at::kInt);
  segments.max_q = 10;
  segments.max_k = 9;
  segments.causal = true;
  segments.window = window;
  return segments;
}
constexpr std::int64_t kRows = 29, kKeys = 30;

struct Inputs {
  at::Tensor q = at::randn({kRows, 4, 8}), k = at::randn({kKeys, 2, 8}), v = at::randn({kKeys, 2, 8});
  at::Tensor dout = at::randn({kRows, 4, 8});
};

at::Tensor covered(const at::Tensor& x, std::int64_t axis = 0) {
  return x.narrow(axis, 2, 24);
}

void expect_same(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_TRUE(at::allclose(a, b, 1e-5, 1e-6)) << a << b;
}

TEST(PortableAligned, RowsBeforeTheFirstKeyGetSegmentsOfTheirOwn) {
  at::manual_seed(1);
  const Inputs in;
  for (std::int64_t window : {0, 1, 3, 100}) {
    const Segments segments = uneven(window), seeing = without_blind_rows(segments);
    const at::Tensor rows = seeing.cu_q.slice(0, 1) - seeing.cu_q.slice(0, 0, -1);
    const at::Tensor keys = seeing.cu_k.slice(0, 1) - seeing.cu_k.slice(0, 0, -1);
    EXPECT_TRUE((rows <= keys).logical_or(keys == 0).all().item<bool>());
    const auto [out, lse] = varlen_forward_plain(in.q, in.k, in.v, segments, kScale);
    const auto [same_out, same_lse] = varlen_forward_plain(in.q, in.k, in.v, seeing, kScale);
    expect_same(covered(same_out), covered(out));
    expect_same(covered(same_lse, 1), covered(lse, 1));
  }
}

TEST(PortableAligned, QueriesBesideKeysForwardAndBackward) {
  at::manual_seed(2);
  const Inputs in;
  for (std::int64_t window : {1, 3, 100}) {
    const Segments segments = uneven(window);
    const QueriesBesideKeys beside(without_blind_rows(segments), kRows, kKeys);
    EXPECT_TRUE(beside.segments().cu_q.equal(beside.segments().cu_k));

    auto [out, lse] = varlen_forward_plain(in.q, in.k, in.v, segments, kScale);
    const auto [key_out, key_lse] = varlen_forward_plain(beside.gather(in.q), in.k, in.v, beside.segments(), kScale);
    expect_same(covered(beside.scatter(key_out, 0.0)), covered(out));
    expect_same(covered(beside.scatter(key_lse.transpose(0, 1), -kInfinity)), covered(lse.transpose(0, 1)));

    const at::Tensor whole = out.nan_to_num(0.0), whole_lse = lse.nan_to_num(0.0, kInfinity, -kInfinity);
    const auto [dq, dk, dv] = varlen_backward_plain(in.dout, in.q, in.k, in.v, whole, whole_lse, segments, kScale);
    const auto [key_dq, same_dk, same_dv] =
        varlen_backward_plain(beside.gather(in.dout), beside.gather(in.q), in.k, in.v, beside.gather(whole),
                              beside.gather_lse(whole_lse), beside.segments(), kScale);
    expect_same(covered(beside.scatter(key_dq, 0.0)), covered(dq));
    expect_same(same_dk, dk);
    expect_same(same_dv, dv);
  }
}

}  // namespace
}  // namespace moba::torch_ops::portable
