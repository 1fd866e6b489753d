// Comparison of tensors.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>

#include "cases/problem.h"

namespace moba::cases {

/// max |a - b|; equal values count 0 (infinities and NaNs too), a NaN or infinity in one only counts as infinite.
double max_error(const HostTensor& a, const HostTensor& b);
double mean_error(const HostTensor& a, const HostTensor& b);
/// max |a|, infinities and NaNs left out.
double max_size(const HostTensor& a);

/// max |a - b| <= tolerance * max(1, max |b|).
::testing::AssertionResult is_close(const HostTensor& a, const HostTensor& b, double tolerance);

/// The 2x-error rule: `result` is at most twice as far from `exact` as `dense`, a same-precision dense computation,
/// is; or, where that was lucky, as far as `spared` roundings of the largest exact value to the result's dtype may take
/// it. On top, `roundings` units in the last place of float32 (of the largest value) are allowed.
::testing::AssertionResult within_twice(const HostTensor& result, const HostTensor& dense, const HostTensor& exact,
                                        double roundings, double spared = 1.0);

/// All five (out, lse, dq, dk, dv) by the rule. Thousands of random problems want spared = 2: gradients go through two
/// roundings, that of out, which enters delta, and their own.
void expect_within_twice(const Results& result, const Results& dense, const Results& exact, double spared = 1.0);

}  // namespace moba::cases
