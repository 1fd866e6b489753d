// The verbs of the reference backend, one file each. Plain loops, double precision inside, results rounded once.
#pragma once

#include "moba/backend.h"

namespace moba::reference {

void pool(Context& context, const PoolArgs& args);
void score(Context& context, const ScoreArgs& args);
void select(Context& context, const SelectArgs& args);
void invert(Context& context, const InvertArgs& args);
void attend(Context& context, const AttendArgs& args);
void attend_backward(Context& context, const AttendBackwardArgs& args);
void merge(Context& context, const MergeArgs& args);

}  // namespace moba::reference
