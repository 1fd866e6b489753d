// The reference's answer for a few rows of a long problem: the last rows of a prefix of its keys.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/torch.h>

#include "moba/options.h"
#include "moba/selection.h"

namespace moba::app {

struct RowRange {
  std::int64_t begin = 0;
  std::int64_t count = 0;
};

/// Rows near the beginning, in the middle and at the end of n; the last row alone for decode.
std::vector<RowRange> sampled_rows(std::int64_t n, bool decode);

/// One head's rows and the keys up to the last of them, on the CPU in their own dtype (a representative is rounded to
/// it, which the choice of blocks sees).
struct ProblemRows {
  torch::Tensor q;       // [rows, 1, D]
  torch::Tensor k, v;    // [keys, 1, D]
  Selection selection;   // of this head, by the reference; all heads choose where they share
  torch::Tensor blocks;  // int32 [rows, 1, budget], where the selection is a list
};

/// q's rows are found from `first_row` on (0 where q holds the sampled rows alone).
ProblemRows problem_rows(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const RowRange& rows,
                         std::int64_t head, std::int64_t first_row, const AttentionOptions& options);

struct ReferenceRows {
  torch::Tensor out;  // [rows, D]
  torch::Tensor lse;  // [rows]
};
ReferenceRows reference_forward(const ProblemRows& rows, double softmax_scale);

struct ReferenceGradients {
  torch::Tensor dq;      // [rows, D]
  torch::Tensor dk, dv;  // [keys, D]
};
/// dout [rows, D].
ReferenceGradients reference_backward(const ProblemRows& rows, const torch::Tensor& dout, double softmax_scale);

/// max |got - expected| / max |expected|; NaN where one of them is NaN.
double relative_error(const torch::Tensor& got, const torch::Tensor& expected);

}  // namespace moba::app
