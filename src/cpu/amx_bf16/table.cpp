// The table of cpu/pairs.h for processors with matrix tiles.
#include "cpu/amx_bf16/verbs.h"
#include "cpu/avx512_bf16/verbs.h"

namespace moba::cpu::amx_bf16 {

extern const PairKernels kTable;
constinit const PairKernels kTable = {
    .begin_products = begin_products,
    .end_products = end_products,
    .copy_rows = avx512_bf16::copy_rows,
    .pack_row_pairs = avx512_bf16::pack_row_pairs,
    .pack_lanes = avx512_bf16::pack_lanes,
    .multiply = multiply,
    .softmax = avx512_bf16::softmax,
    .softmax_backward = avx512_bf16::softmax_backward,
    .dot_lanes = dot_lanes,
    .dot_row = avx512_bf16::dot_row,
    .add_row = avx512_bf16::add_row,
    .rank_scores = avx512_bf16::rank_scores,
    .mark_scores = avx512_bf16::mark_scores,
};

}  // namespace moba::cpu::amx_bf16
