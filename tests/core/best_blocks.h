// The judge of a choice of blocks: every rule of moba::ChoiceRule, recomputed in double precision.
#pragma once

#include "cases/problem.h"

namespace moba::test {

/// Each list of the choice (made for problem.options) is ascending, from the past, as long as it can be, holds the
/// forced blocks, and beside them the best by the scores in double precision: one that is left out may beat one that is
/// in by no more than the roundings of two float32 scores. Values must be finite. Reports through GoogleTest.
void expect_best_blocks(const cases::Problem& problem, const cases::Choice& choice);

}  // namespace moba::test
