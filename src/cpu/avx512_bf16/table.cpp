// The table of cpu/pairs.h.
#include "cpu/avx512_bf16/verbs.h"

namespace moba::cpu::avx512_bf16 {

extern const PairKernels kTable;
constinit const PairKernels kTable = {
    .begin_products = [] {},
    .end_products = [] {},
    .copy_rows = copy_rows,
    .pack_row_pairs = pack_row_pairs,
    .pack_lanes = pack_lanes,
    .multiply = multiply,
    .softmax = softmax,
    .softmax_backward = softmax_backward,
    .dot_lanes = dot_lanes,
    .dot_row = dot_row,
    .add_row = add_row,
    .rank_scores = rank_scores,
    .mark_scores = mark_scores,
};

}  // namespace moba::cpu::avx512_bf16
