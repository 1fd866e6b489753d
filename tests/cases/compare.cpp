#include "cases/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace moba::cases {
namespace {

double error_of(double x, double y) {
  if (x == y || (std::isnan(x) && std::isnan(y))) return 0.0;
  const double error = std::fabs(x - y);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

}  // namespace

double max_error(const HostTensor& a, const HostTensor& b) {
  const std::vector<double> x = a.values(), y = b.values();
  if (x.size() != y.size()) return std::numeric_limits<double>::infinity();
  double error = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) error = std::max(error, error_of(x[i], y[i]));
  return error;
}

double mean_error(const HostTensor& a, const HostTensor& b) {
  const std::vector<double> x = a.values(), y = b.values();
  if (x.size() != y.size()) return std::numeric_limits<double>::infinity();
  double sum = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += error_of(x[i], y[i]);
  return x.empty() ? 0.0 : sum / static_cast<double>(x.size());
}

double max_size(const HostTensor& a) {
  double size = 0.0;
  for (double x : a.values()) {
    if (std::isfinite(x)) size = std::max(size, std::fabs(x));
  }
  return size;
}

::testing::AssertionResult is_close(const HostTensor& a, const HostTensor& b, double tolerance) {
  const double error = max_error(a, b), bound = tolerance * std::max(1.0, max_size(b));
  if (error <= bound) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "max error " << error << " above " << bound;
}

::testing::AssertionResult within_twice(const HostTensor& result, const HostTensor& dense, const HostTensor& exact,
                                        double roundings, double spared) {
  constexpr double kFloat32Unit = 0x1p-23;
  const double unit = result.dtype() == DType::kBFloat16  ? 0x1p-8
                      : result.dtype() == DType::kFloat16 ? 0x1p-11
                                                          : 0x1p-24;
  const double size = max_size(exact), error = max_error(result, exact);
  const double bound = std::max(2.0 * max_error(dense, exact), spared * unit * size) + roundings * kFloat32Unit * size;
  if (error <= bound) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "max error " << error << "; dense in the same precision "
                                       << max_error(dense, exact) << ", so at most " << bound << " is allowed";
}

void expect_within_twice(const Results& result, const Results& dense, const Results& exact, double spared) {
  constexpr double kRoundings = 4.0;
  EXPECT_TRUE(within_twice(result.out, dense.out, exact.out, kRoundings, spared)) << "out";
  EXPECT_TRUE(within_twice(result.lse, dense.lse, exact.lse, kRoundings, spared)) << "lse";
  // Every probability of the backward pass is exp(score - lse): half a unit in the last place of a float32 lse moves it
  // by |lse| / 2 units. The dense computation escapes this where its scores are rounded just as its lse was.
  const double gradient_roundings = kRoundings + max_size(exact.lse);
  EXPECT_TRUE(within_twice(result.dq, dense.dq, exact.dq, gradient_roundings, spared)) << "dq";
  EXPECT_TRUE(within_twice(result.dk, dense.dk, exact.dk, gradient_roundings, spared)) << "dk";
  EXPECT_TRUE(within_twice(result.dv, dense.dv, exact.dv, gradient_roundings, spared)) << "dv";
}

}  // namespace moba::cases
